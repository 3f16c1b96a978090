"""Tasks as checked examples, the order of tasks, and the order of batches."""

from tss.data.batches import batches
from tss.data.jsonl import read_lines
from tss.data.orders import AUTHOR_ORDERS, Order, author_order, resolve_order
from tss.data.source import TaskData, list_tasks, load_task

__all__ = [
    "AUTHOR_ORDERS",
    "Order",
    "TaskData",
    "author_order",
    "batches",
    "list_tasks",
    "load_task",
    "read_lines",
    "resolve_order",
]

"""Load tasks as validated examples, order tasks, and form batches."""

from tss.data.batches import batches
from tss.data.jsonl import parse_line, read_lines, split_lines, stream_lines
from tss.data.orders import AUTHOR_ORDERS, Order, author_order, resolve_order
from tss.data.schema import Malformed, check_input
from tss.data.source import TaskData, list_tasks, load_task

__all__ = [
    "AUTHOR_ORDERS",
    "Malformed",
    "Order",
    "TaskData",
    "author_order",
    "batches",
    "check_input",
    "list_tasks",
    "load_task",
    "parse_line",
    "read_lines",
    "resolve_order",
    "split_lines",
    "stream_lines",
]

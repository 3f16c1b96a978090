"""AdamW whose gradient or step is scaled by 1 - importance."""

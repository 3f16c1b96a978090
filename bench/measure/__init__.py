"""One way of measuring: cases, the check that comes before the clock, timers, and the file that results go to."""

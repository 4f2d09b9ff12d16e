"""Where a process's log goes and how: output.py chooses and shapes, storm.py holds back repetition, journald.py speaks to the journal,
recent.py remembers for bug reports. Everybody logs through logging, one line an event; only commands and daemons import this room."""

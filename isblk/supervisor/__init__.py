"""The supervisor: what isblktab says is kept up, each export by a process of its own, so that one's end is nobody else's.

The modules, lowest first:

life.py     PURE: the states of an export, which leads to which, and the pauses between two attempts
plan.py     PURE: a table that was changed against what runs: what to start, stop, restart, change, leave alone
words.py    what a child says, in a pipe that outlives the supervisor
child.py    a child process: started, or found again by its control socket; ready, ended, told to end
keeper.py   one export: starting it, trying again, ending it
run.py      all of them: requests of the control socket, signals, the table read again
lock.py     one supervisor for a run directory, and where it is

A supervisor that is killed leaves its children serving, for they hold data; the next one finds them by their control sockets and goes on
with them as if they were its own. Nothing is written down for that: which export a daemon is can be read from its command line.
"""

"""isblktab: which exports this machine has, one a line, in the shape of fstab(5) (isblktab(5)).

The modules, lowest first:

    problems.py   PURE: every sentence there is about a table, and where in the file it belongs
    fields.py     PURE: a line's fields and options with their columns, and the escapes in them
    options.py    PURE: the options of each type, what their values are, what they become on a command line
    entry.py      PURE: text -> entries and problems; an entry -> the command that serves it
    agreement.py  PURE: what contradicts itself in an entry, given what the configuration says of its target
    check.py      all of it with the files of this machine: the table, the configuration, the secrets; nothing is contacted

Nothing here knows a command, a process or a clock: what is done with a table is isblk/supervisor's.
"""

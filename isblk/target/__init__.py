"""The embedded iSCSI target: what `isblk target`, the demo, the tests and the benchmark run against.

    config.py   what a target is made of: name, portals, logical units, credentials, negotiable values
    check.py    PURE. Sense data as the device server makes it, and the exception that carries it (SPC-4 4.5)
    extents.py  PURE. A set of byte ranges
    store.py    PURE. Bytes over memory or a sparse file, with a volatile write cache that a crash can lose
    pages.py    PURE. What a logical unit says about itself: INQUIRY, VPD, mode pages, supported commands (SPC-4, SBC-3)
    outcome.py  PURE. What a command is to the device server: table row, nexus, outcome (SAM-5)
    primary.py  PURE. Commands that every unit has (SPC-4)
    medium.py   PURE. Commands of a disk (SBC-3)
    unit.py     PURE. The logical unit: commands over a store, unit attentions, the switches of tests
    luns.py     PURE. The logical units of a target, found by their 8-byte LUN (SAM-5 4.7)
    negotiate.py PURE. Decisions on operational keys (RFC 7143 13)
    authenticate.py PURE. CHAP, the target's turns (RFC 7143 12.1.3)
    login.py    PURE. The target's side of the login conversation (RFC 7143 6 and 12)
    sessions.py PURE. The sessions of a target: reinstatement, the command window, counts (RFC 7143 6.3.5, 4.2.2.1)
    tasks.py    PURE. One SCSI command on the wire: R2Ts, Data-Out, Data-In, status (RFC 7143 4.2.4, 11.3-11.8)
    texts.py    PURE. Text Requests: SendTargets (RFC 7143 6.4, appendix C)
    management.py PURE. Task management functions (RFC 7143 4.2.3, 11.5)
    core.py     PURE. One connection: PDUs in, PDUs out (RFC 7143 11)
    server.py   trio listeners: several portals, several portal groups, one identity

With the initiator it shares the alphabet (opcodes, framing, text codec, CHAP arithmetic), never the grammar: turn-taking, sequencing,
windows and negotiation are written a second time here from the RFC, so that a test of one against the other does not agree with itself.
"""

"""What `isblk doctor` finds out about a target and the way to it; it never writes to a logical unit and never ends another's session.

findings.py sentences.py   PURE: a finding, the report, and the table of every sentence there is
machine.py running.py      this machine, its configuration, what runs here
network.py                 names, ports, packets
listening.py               hears a login without its secrets; sessions.py judges it: keys.py, proof.py (CHAP)
disks.py speed.py          logical units over every portal, round trips and throughput
examination.py             the order of it all, and its deadlines
bundle.py scrub.py         the report as a file to send, without secrets
"""

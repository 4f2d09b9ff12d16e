"""iSCSI, RFC 7143, from bytes to finished tasks. PURE: no clock, no socket, no await; a CDB is opaque here.

names (who and where), pdu (headers), framer (byte stream to PDUs), text (key=value), keys (what each key means), chap (proving a secret),
login (the conversation that opens a session), terms (what it asks and gets),
loginstatus (why it may fail), session (the full feature phase).
"""

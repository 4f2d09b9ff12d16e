"""Finding targets: each file a pure codec on top and one coroutine below.

sendtargets asks a portal (RFC 7143 appendix C). Places kept for the others: isns (RFC 4171), slp (RFC 4018), rootpath (RFC 4173).
"""

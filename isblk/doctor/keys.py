"""What a login agreed on, key by key: what we asked, what holds, and by which rule of RFC 7143 13 that was decided; and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from isblk.doctor.findings import Report
from isblk.iscsi.keys import KEYS, Rule
from isblk.iscsi.terms import Agreement, Negotiated

SMALL_SEGMENT = 65536
SMALL_BURST = 262144
SMALL_WINDOW = 16

_LOWERED: dict[Rule, str] = {
    Rule.MINIMUM: "the target lowered it: the smaller value counts",
    Rule.MAXIMUM: "the target raised it: the larger value counts",
    Rule.AND: "the target said No: it takes two to say Yes",
    Rule.OR: "the target said Yes: one is enough",
    Rule.FIRST_COMMON: "the target chose it of our list",
}
_AGREED: dict[Rule, str] = {
    Rule.MINIMUM: "as we asked: the target allows as much",
    Rule.MAXIMUM: "as we asked: the target needs no more",
    Rule.AND: "both said the same",
    Rule.OR: "both said the same",
    Rule.FIRST_COMMON: "our first choice",
}


def why(agreement: Agreement) -> str:
    """Who decided a key, and by which rule, in words."""
    name = agreement.key.removesuffix(" (target)")
    key = KEYS.get(name)
    if agreement.decided == "default":
        return "the default of RFC 7143: the target did not say"
    if key is None or key.rule is Rule.DECLARATIVE:
        return "the target's own, declared" if agreement.decided == "target" else "our own, declared"
    if agreement.decided == "isblk":
        return "the target asked, we answered"
    return (_AGREED if agreement.decided == "both" else _LOWERED).get(key.rule, "")


def explain(report: Report, portal: object, agreements: Sequence[Agreement], before: Sequence[Agreement] | None) -> None:
    """Every key as a table (in the finding's data), unless it is that of the portal `before`."""
    if before is not None and list(agreements) == list(before):
        report.say("keys-same", portal=portal)
        return
    rows = [{"key": one.key, "asked": one.asked, "agreed": one.agreed, "decided": one.decided, "why": why(one)} for one in agreements]
    report.say("keys", {"portal": str(portal), "negotiated": rows}, portal=portal)


def costs(report: Report, negotiated: Negotiated, window: int) -> None:
    """What the target's values make slow; `window` is how many commands it lets in at once."""
    if negotiated.target_max_recv_data_segment_length < SMALL_SEGMENT:
        report.say("segments-small", size=negotiated.target_max_recv_data_segment_length)
    if negotiated.initial_r2t and not negotiated.immediate_data:
        report.say("writes-wait")
    if negotiated.max_burst_length < SMALL_BURST:
        report.say("bursts-small", size=negotiated.max_burst_length)
    if window < SMALL_WINDOW:
        report.say("window-small", count=window)

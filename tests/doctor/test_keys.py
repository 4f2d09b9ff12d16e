"""What a login agreed on: every decision in words, and what the target's values cost."""

from __future__ import annotations

import pytest

from isblk.doctor import keys
from isblk.doctor.findings import Report
from isblk.iscsi.terms import Agreement
from support.doctor import names
from support.scripts import negotiated


@pytest.mark.parametrize(
    ("agreement", "words"),
    [
        (Agreement("MaxBurstLength", "16776192", "65536", "target"), "the target lowered it: the smaller value counts"),
        (Agreement("MaxBurstLength", "65536", "65536", "both"), "as we asked: the target allows as much"),
        (Agreement("DefaultTime2Wait", "2", "5", "target"), "the target raised it: the larger value counts"),
        (Agreement("DefaultTime2Wait", "2", "2", "both"), "as we asked: the target needs no more"),
        (Agreement("ImmediateData", "Yes", "No", "target"), "the target said No: it takes two to say Yes"),
        (Agreement("InitialR2T", "No", "Yes", "target"), "the target said Yes: one is enough"),
        (Agreement("InitialR2T", "No", "No", "both"), "both said the same"),
        (Agreement("HeaderDigest", "CRC32C,None", "None", "target"), "the target chose it of our list"),
        (Agreement("HeaderDigest", "None,CRC32C", "None", "both"), "our first choice"),
        (Agreement("iSCSIProtocolLevel", "1", "1", "default"), "the default of RFC 7143: the target did not say"),
        (Agreement("MaxRecvDataSegmentLength", "1048576", "1048576", "isblk"), "our own, declared"),
        (Agreement("MaxRecvDataSegmentLength (target)", None, "8192", "target"), "the target's own, declared"),
        (Agreement("IFMarker", None, "No", "isblk"), "the target asked, we answered"),
    ],
)
def test_who_decided_a_key_and_by_which_rule(agreement: Agreement, words: str) -> None:
    assert keys.why(agreement) == words


@pytest.mark.provokes("keys", "keys-same")
def test_the_second_portal_is_told_as_the_same_only_when_it_is() -> None:
    report, one = Report(), [Agreement("MaxBurstLength", "16776192", "65536", "target")]
    keys.explain(report, "a:3260", one, None)
    keys.explain(report, "b:3260", list(one), one)
    keys.explain(report, "c:3260", [Agreement("MaxBurstLength", "16776192", "16384", "target")], one)
    assert names(report) == ["keys", "keys-same", "keys"]
    (row,) = report.findings[0].data["negotiated"]
    assert row["asked"] == "16776192" and row["agreed"] == "65536" and row["decided"] == "target" and row["why"]


@pytest.mark.provokes("segments-small", "writes-wait", "bursts-small", "window-small")
def test_values_that_make_it_slow() -> None:
    slow = negotiated(target_max_recv_data_segment_length=8192, initial_r2t=True, immediate_data=False, max_burst_length=65536)
    report = Report()
    keys.costs(report, slow, 4)
    assert names(report) == ["segments-small", "writes-wait", "bursts-small", "window-small"]


def test_values_that_do_not() -> None:
    report = Report()
    keys.costs(report, negotiated(target_max_recv_data_segment_length=262144, max_burst_length=16776192, immediate_data=True), 128)
    assert not report.findings

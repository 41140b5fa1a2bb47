"""What the node offers, accepts and declines, and in which words (PS3.8 section 7.1, PS3.7 annex D)."""

from __future__ import annotations

import struct

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import ImplementationVersionNameNotification

import cxrnode
from cxrnode.dicom import negotiation
from cxrnode.dicom.negotiation import (
    COMMITMENT,
    CONTEXT_NAME_NOT_SUPPORTED,
    IMPLEMENTATION_VERSION,
    MAX_PDU_BYTES,
    STORAGE,
    VERIFICATION,
    VERSION_NOT_SUPPORTED,
    Context,
    Offer,
    Request,
    accept,
    declined,
    parse_request,
    supported,
)
from cxrnode.dicom.uids import IMPLEMENTATION_CLASS_UID
from tests.support.receiving import NODE, PACS, associate_rq, item

CR, CT, MR = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
LENGTH_AND_CLASS = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4")


def asked(*contexts: tuple[int, str, str], user: bytes = LENGTH_AND_CLASS) -> Request:
    request = parse_request(associate_rq(*contexts, user=user)[6:])
    assert isinstance(request, Request)
    return request


def test_each_refusal_has_words_of_its_own() -> None:
    """Metrics, ledger and log tell them apart by these."""
    assert {name: text.text for name, text in vars(negotiation).items() if isinstance(text, negotiation.Refusal)} == {
        "NO_REASON": "nothing that it asks for is offered to it",
        "CONTEXT_NAME_NOT_SUPPORTED": "application context name not supported",
        "CALLING_NOT_RECOGNISED": "calling AE title not recognised",
        "FROM_ANOTHER_ADDRESS": "calling AE title allowed from another address",
        "WITHOUT_TLS": "calling AE title bound to a client certificate, without TLS",
        "NOT_ITS_CERTIFICATE": "calling AE title without its client certificate",
        "CALLED_NOT_RECOGNISED": "called AE title not recognised",
        "VERSION_NOT_SUPPORTED": "protocol version not supported",
        "LIMIT_EXCEEDED": "too many associations",
    }
    assert negotiation.FROM_ANOTHER_ADDRESS.encode() == negotiation.CALLING_NOT_RECOGNISED.encode()


def test_radiographs_and_secondary_captures_are_taken() -> None:
    sop_classes = {"1", "1.1", "1.1.1", "7"}
    assert {f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in sop_classes} == STORAGE
    assert (VERIFICATION, COMMITMENT) == ("1.2.840.10008.1.1", "1.2.840.10008.1.20.1")


# -- the request


def test_titles_are_read_without_their_padding_and_uids_have_64_characters() -> None:
    padded = associate_rq((1, "1." + "2" * 62, IMPLICIT)).replace(PACS.ljust(16).encode(), PACS.center(16).encode())
    request = parse_request(padded[6:])
    assert isinstance(request, Request)
    assert request.calling_aet == PACS
    assert request.abstract_syntaxes == {"1." + "2" * 62}
    for contexts in ((1, "1." + "2" * 63, IMPLICIT), (1, CR, "1." + "2" * 63)):
        with pytest.raises(ValueError, match="64 characters"):
            parse_request(associate_rq(contexts)[6:])


def test_an_offer_tells_nothing_by_itself() -> None:
    offer = Offer(contexts=[], idle_timeout_s=1.0)
    assert (offer.tell, offer.detail) == (False, "")


def test_a_request_is_read_as_it_is_meant() -> None:
    request = asked((1, VERIFICATION, IMPLICIT), (3, CR, EXPLICIT), (5, CR, IMPLICIT))
    assert (request.calling_aet, request.called_aet, request.max_length) == (PACS, NODE, 16384)
    assert request.abstract_syntaxes == {VERIFICATION, CR}
    without = asked((1, VERIFICATION, IMPLICIT), user=item(0x51, struct.pack(">L", 0)) + item(0x52, b"1.2.3.4"))
    assert without.max_length == 0


@pytest.mark.parametrize(("version", "taken"), [(1, True), (3, True), (0xFFFF, True), (0, False), (2, False)])
def test_version_1_is_spoken(version: int, taken: bool) -> None:
    """PS3.8 table 9-11: a bit a version, and that of ours alone is looked at."""
    request = parse_request(associate_rq((1, VERIFICATION, IMPLICIT), version=version)[6:])
    assert (request is not VERSION_NOT_SUPPORTED) is taken


def test_the_application_context_is_dicoms() -> None:
    foreign = associate_rq((1, VERIFICATION, IMPLICIT)).replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2")
    assert parse_request(foreign[6:]) is CONTEXT_NAME_NOT_SUPPORTED


# -- the answer


def test_an_acceptance_says_who_we_are_and_answers_each_context() -> None:
    request = asked((1, VERIFICATION, IMPLICIT), (3, CT, IMPLICIT), (5, CR, EXPLICIT), (7, CR, "1.2.3"))
    accepted, raw = accept(request, supported(storage=True, commitment=False))
    assert accepted == {
        1: Context(abstract_syntax=VERIFICATION, transfer_syntax=IMPLICIT),
        5: Context(abstract_syntax=CR, transfer_syntax=EXPLICIT),
    }
    answer = A_ASSOCIATE_AC()
    answer.decode(raw)
    said = answer.to_primitive()
    assert {cx.context_id: cx.result for cx in said.presentation_context_definition_results_list} == {
        1: 0, 3: 3, 5: 0, 7: 4,
    }  # fmt: skip
    assert (said.application_context_name, said.result) == ("1.2.840.10008.3.1.1.1", 0)
    assert (said.calling_ae_title.strip(), said.called_ae_title.strip()) == (PACS, NODE)
    assert said.maximum_length_received == MAX_PDU_BYTES == 131072
    assert said.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    (version,) = [i for i in said.user_information if isinstance(i, ImplementationVersionNameNotification)]
    assert version.implementation_version_name == IMPLEMENTATION_VERSION == f"CXRNODE_{cxrnode.__version__}"[:16]


@pytest.mark.parametrize(("scu", "scp"), [(True, True), (False, True), (True, False)])
def test_the_roles_that_a_peer_proposes_for_commitment_are_its(scu: bool, scp: bool) -> None:
    """It asks for commitment as the SCU, and reports as the SCP (PS3.4 section J.3)."""
    role = struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + bytes([scu, scp])
    request = asked((1, COMMITMENT, IMPLICIT), user=LENGTH_AND_CLASS + item(0x54, role))
    accepted, raw = accept(request, supported(storage=False, commitment=True))
    assert set(accepted) == {1}
    assert item(0x54, role) in raw


# -- what is declined


@pytest.mark.parametrize(
    ("contexts", "said"),
    [
        ([(CT, IMPLICIT)], "CT Image Storage in Implicit VR Little Endian"),
        ([(CT, IMPLICIT), (CT, EXPLICIT), (CT, IMPLICIT)],
         "CT Image Storage in Implicit VR Little Endian, Explicit VR Little Endian"),
        ([(CT, IMPLICIT), (MR, EXPLICIT)],
         "CT Image Storage in Implicit VR Little Endian; MR Image Storage in Explicit VR Little Endian"),
        ([(f"1.2.{n}", IMPLICIT) for n in range(4)],
         "; ".join(f"1.2.{n} in Implicit VR Little Endian" for n in range(4))),
        ([(f"1.2.{n}", IMPLICIT) for n in range(5)],
         "; ".join(f"1.2.{n} in Implicit VR Little Endian" for n in range(4)) + " and 1 more"),
        ([(CT, f"1.3.{n}") for n in range(6)], "CT Image Storage in 1.3.0, 1.3.1, 1.3.2, 1.3.3 and 2 more"),
    ],
    ids=["one", "syntaxes", "classes", "four", "five", "many-syntaxes"],
)  # fmt: skip
def test_what_is_declined_is_named_and_the_log_stays_short(contexts: list[tuple[str, str]], said: str) -> None:
    request = asked(*[(2 * n + 1, *context) for n, context in enumerate(contexts)])
    assert declined(request, {}) == said


def test_what_is_accepted_is_not_named() -> None:
    request = asked((1, VERIFICATION, IMPLICIT), (3, CT, IMPLICIT))
    accepted, _ = accept(request, supported(storage=True, commitment=False))
    assert declined(request, accepted) == "CT Image Storage in Implicit VR Little Endian"

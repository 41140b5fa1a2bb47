"""Association negotiation, acceptor side (PS3.8 section 7.1, PS3.7 annex D), on pynetdicom's PDUs and rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom import uid as uids
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

import cxrnode
from cxrnode.dicom.fragments import DEFLATED_FRAME, ENCAPSULATED_UNCOMPRESSED
from cxrnode.dicom.sockets import pdu
from cxrnode.dicom.uids import IMPLEMENTATION_CLASS_UID

ASSOCIATE_RQ, ASSOCIATE_RJ = 0x01, 0x03
MAX_PDU_BYTES = 131072  # the most that DCMTK sends; eight times pynetdicom's default, for an eighth of the cost
IMPLEMENTATION_VERSION = f"CXRNODE_{cxrnode.__version__}"[:16]
COMMITMENT = str(StorageCommitmentPushModel)
VERIFICATION = str(Verification)
STORAGE = frozenset(
    str(uid)
    for uid in (
        uids.ComputedRadiographyImageStorage,
        uids.DigitalXRayImageStorageForPresentation,
        uids.DigitalXRayImageStorageForProcessing,
        uids.SecondaryCaptureImageStorage,
    )
)
# All that `codecs` decodes, in the order of preference where a peer leaves the choice: uncompressed first, so that
# nobody compresses for us; what loses something last.
TRANSFER_SYNTAXES = (
    uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian,
    uids.JPEGLosslessSV1, uids.JPEGLossless, uids.JPEGLSLossless, uids.JPEG2000Lossless,
    uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.RLELossless, ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAME,
    uids.DeflatedExplicitVRLittleEndian, uids.ExplicitVRBigEndian,
    uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLSNearLossless, uids.JPEG2000, uids.HTJ2K,
)  # fmt: skip
_UNCOMPRESSED = TRANSFER_SYNTAXES[:2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an A-ASSOCIATE-RQ asks for. AE titles without padding."""

    calling_aet: str
    called_aet: str
    abstract_syntaxes: frozenset[str]
    max_length: int  # of a P-DATA-TF that the peer takes, bytes; 0: any
    primitive: A_ASSOCIATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one peer may have; `detail`: why it is no more, for the log. tell: also where it asks for no more."""

    contexts: list[PresentationContext]
    idle_timeout_s: float
    detail: str = ""
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4).

    text: one of a few. detail: for the log alone; recorded: for the ledger alone.
    """

    result: int
    source: int
    reason: int
    text: str
    detail: str = ""
    recorded: str = ""

    def encode(self) -> bytes:
        return pdu(ASSOCIATE_RJ, bytes((0, self.result, self.source, self.reason)))


NO_REASON = Refusal(1, 1, 1, "nothing that it asks for is offered to it")
CONTEXT_NAME_NOT_SUPPORTED = Refusal(1, 1, 2, "application context name not supported")
CALLING_NOT_RECOGNISED = Refusal(1, 1, 3, "calling AE title not recognised")
FROM_ANOTHER_ADDRESS = Refusal(1, 1, 3, "calling AE title allowed from another address")
WITHOUT_TLS = Refusal(1, 1, 3, "calling AE title bound to a client certificate, without TLS")
NOT_ITS_CERTIFICATE = Refusal(1, 1, 3, "calling AE title without its client certificate")
CALLED_NOT_RECOGNISED = Refusal(1, 1, 7, "called AE title not recognised")
VERSION_NOT_SUPPORTED = Refusal(1, 2, 2, "protocol version not supported")
LIMIT_EXCEEDED = Refusal(2, 3, 2, "too many associations")


_MOST_NAMED = 4  # of what a peer asks for, in the log


def parse_request(content: bytes) -> Request | Refusal:
    """Raises whatever pynetdicom's parser raises on what is no A-ASSOCIATE-RQ."""
    rq = A_ASSOCIATE_RQ()
    rq.decode(pdu(ASSOCIATE_RQ, content))
    if not rq.protocol_version & 1:
        return VERSION_NOT_SUPPORTED
    primitive = rq.to_primitive()
    if primitive.application_context_name != "1.2.840.10008.3.1.1.1":
        return CONTEXT_NAME_NOT_SUPPORTED
    return Request(
        calling_aet=str(primitive.calling_ae_title),
        called_aet=str(primitive.called_ae_title),
        abstract_syntaxes=frozenset(str(cx.abstract_syntax) for cx in primitive.presentation_context_definition_list),
        max_length=int(primitive.maximum_length_received or 0),
        primitive=primitive,
    )


def supported(*, storage: bool, commitment: bool) -> list[PresentationContext]:
    """The contexts that one peer is offered: Verification always."""
    contexts = [_context(VERIFICATION, _UNCOMPRESSED)]
    if storage:
        contexts += [_context(uid, TRANSFER_SYNTAXES) for uid in sorted(STORAGE)]
    if commitment:
        both = _context(COMMITMENT, _UNCOMPRESSED)
        both.scu_role = both.scp_role = True  # N-ACTION comes to the SCP, N-EVENT-REPORT to the SCU (PS3.4 J.3)
        contexts.append(both)
    return contexts


def accept(request: Request, offered: list[PresentationContext]) -> tuple[dict[int, Context], bytes]:
    """The accepted contexts by ID (perhaps none), and the A-ASSOCIATE-AC."""
    asked = request.primitive
    roles = {item.sop_class_uid: (item.scu_role, item.scp_role) for item in _items(asked, "SCP_SCU_Role")}
    results, reply_roles = negotiate_as_acceptor(asked.presentation_context_definition_list, offered, roles)
    answer = A_ASSOCIATE()
    answer.application_context_name = asked.application_context_name
    answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
    answer.presentation_context_definition_results_list = results
    answer.user_information = [*_user_information(), *reply_roles]
    accepted = {
        int(cx.context_id or 0): Context(
            abstract_syntax=str(cx.abstract_syntax), transfer_syntax=str(cx.transfer_syntax[0])
        )
        for cx in results
        if cx.result == 0x00
    }
    return accepted, A_ASSOCIATE_AC(answer).encode()


def declined(request: Request, accepted: Mapping[int, Context]) -> str:
    """What it asks for and does not get: SOP classes with their transfer syntaxes, the first few by name."""
    asked: dict[str, list[str]] = {}
    for context in request.primitive.presentation_context_definition_list:
        if int(context.context_id or 0) not in accepted:
            asked.setdefault(str(context.abstract_syntax), []).extend(map(str, context.transfer_syntax))
    classes = [f"{_name(sop_class)} in {_few(list(dict.fromkeys(map(_name, s))))}" for sop_class, s in asked.items()]
    return _few(classes, between="; ")


def _name(uid: str) -> str:
    return uids.UID(uid).name


def _few(names: list[str], between: str = ", ") -> str:
    more = len(names) - _MOST_NAMED
    return between.join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _items(primitive: A_ASSOCIATE, kind: str) -> list[Any]:
    return [item for item in primitive.user_information if type(item).__name__.startswith(kind)]


def _user_information() -> list[Any]:
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = MAX_PDU_BYTES
    implementation.implementation_class_uid = uids.UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION
    return [length, implementation, version]


def _context(abstract_syntax: str, transfer_syntaxes: tuple[uids.UID, ...]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = uids.UID(abstract_syntax)
    context.transfer_syntax = list(transfer_syntaxes)
    return context

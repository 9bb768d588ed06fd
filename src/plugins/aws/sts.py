"""sts:GetCallerIdentity, which clients call to learn who they are. The protocol is forms in, XML out."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from .call import Call
from .errors import ApiError

NAMESPACE: Final = "https://sts.amazonaws.com/doc/2011-06-15/"
FIELDS_MAX: Final = 100


def answer(call: Call, body: bytes) -> str:
    """The answer to a call of STS.

    Raises:
        ApiError: another action than GetCallerIdentity.
    """
    try:
        fields = dict(parse_qsl(body.decode("ascii"), max_num_fields=FIELDS_MAX))
    except (UnicodeDecodeError, ValueError):
        fields = {}
    if fields.get("Action") != "GetCallerIdentity":
        raise ApiError("STS here answers GetCallerIdentity alone", code="InvalidAction")
    arn, account = escape(call.principal.arn(call.place.account)), call.place.account
    return (
        f'<GetCallerIdentityResponse xmlns="{NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>{arn}</Arn><UserId>{escape(call.principal.user_id)}</UserId><Account>{account}</Account>"
        f"</GetCallerIdentityResult><ResponseMetadata><RequestId>{call.request_id}</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    )


def failure(call: Call, error: ApiError) -> str:
    """An error in STS's form."""
    fault = "Sender" if error.status < 500 else "Receiver"
    return (
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>{fault}</Type><Code>{escape(error.code)}</Code>'
        f"<Message>{escape(error.message)}</Message></Error><RequestId>{call.request_id}</RequestId></ErrorResponse>"
    )

"""Signed sessions: who is asking, proven by a cookie; forms and calls proven by a token. No SQL."""

import hmac
import secrets
import time
from dataclasses import dataclass, field
from hashlib import sha256

from itsdangerous import BadData, Signer, URLSafeTimedSerializer

LIFETIME_S = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser: ids of the session and of the rater, end in seconds since 1970.

    It holds as long as the rater's own `epoch` is the same: signing out, a new link, and switching
    off or on raise that, and whoever has a copy of the cookie is out.
    """

    id: str
    rater: str
    epoch: int = 0
    until: float = field(default_factory=lambda: time.time() + LIFETIME_S, compare=False)

    @property
    def is_half_over(self) -> bool:
        """Whether the cookie should be signed anew, which begins its time again."""
        return self.until - time.time() < LIFETIME_S / 2


def begin(rater: str, epoch: int = 0) -> Session:
    """A new session of a rater."""
    return Session(secrets.token_hex(12), rater, epoch)


def sign(secret: bytes, session: Session) -> str:
    """The value of a cookie that holds for `LIFETIME_S` from now."""
    signed = _cookies(secret).dumps([session.id, session.rater, session.epoch])
    return signed if isinstance(signed, str) else signed.decode()


def verify(secret: bytes, cookie: str) -> Session | None:
    """The session of a cookie; None if it is forged, damaged or over."""
    try:
        (key, rater, epoch), signed_at = _cookies(secret).loads(
            cookie, max_age=round(LIFETIME_S), return_timestamp=True
        )
    except BadData:
        return None
    return Session(key, rater, epoch, signed_at.timestamp() + LIFETIME_S)


def form_token(secret: bytes, session: Session | None) -> str:
    """What a page of ours sends with every change, and no foreign page knows."""
    return _forms(secret).get_signature(session.id if session else "").decode()


def is_form_token(secret: bytes, session: Session | None, token: str) -> bool:
    """Whether `token` belongs to this session."""
    return _forms(secret).verify_signature(session.id if session else "", token)


def _cookies(secret: bytes) -> URLSafeTimedSerializer:
    how = {"key_derivation": "hmac", "digest_method": sha256}
    return URLSafeTimedSerializer(secret, salt="session", signer_kwargs=how)


def _forms(secret: bytes) -> Signer:
    return Signer(secret, salt="form", key_derivation="hmac", digest_method=sha256)


def public_id(secret: bytes, name: str) -> str:
    """A name that raters may see for one that they must not: no hash that they could check."""
    return hmac.new(secret, f"name\n{name}".encode(), "sha256").hexdigest()[:16]

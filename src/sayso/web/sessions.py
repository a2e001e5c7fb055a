"""Signed sessions: who is asking, proven by a cookie; forms and calls proven by a token. No SQL."""

import hmac
import secrets
import time
from dataclasses import dataclass, replace

LIFETIME_S = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser: ids of the session and of the rater, end in seconds since 1970.

    It holds as long as the rater's own `epoch` is the same: signing out, a new link, and switching
    off or on raise that, and whoever has a copy of the cookie is out.
    """

    id: str
    rater: str
    until: float
    epoch: int = 0

    @property
    def is_half_over(self) -> bool:
        """Whether the cookie should be renewed."""
        return self.until - time.time() < LIFETIME_S / 2


def begin(rater: str, epoch: int = 0) -> Session:
    """A new session of a rater."""
    return Session(secrets.token_hex(12), rater, float(round(time.time() + LIFETIME_S)), epoch)


def renewed(session: Session) -> Session:
    """The same session with a later end."""
    return replace(session, until=float(round(time.time() + LIFETIME_S)))


def sign(secret: bytes, session: Session) -> str:
    """The value of the cookie."""
    text = f"{session.id}.{session.rater}.{session.until:.0f}.{session.epoch}"
    return f"{text}.{_mac(secret, 'session', text)}"


def verify(secret: bytes, cookie: str) -> Session | None:
    """The session of a cookie; None if it is forged, damaged or over."""
    text, _, mac = cookie.rpartition(".")
    if not hmac.compare_digest(mac.encode(), _mac(secret, "session", text).encode()):
        return None
    session_id, rater, until, *epoch = text.split(".")
    if float(until) <= time.time():
        return None
    return Session(session_id, rater, float(until), int(epoch[0]) if epoch else 0)


def form_token(secret: bytes, session: Session | None) -> str:
    """What a page of ours sends with every change, and no foreign page knows."""
    return _mac(secret, "form", session.id if session else "")


def is_form_token(secret: bytes, session: Session | None, token: str) -> bool:
    """Whether `token` belongs to this session."""
    return hmac.compare_digest(token.encode(), form_token(secret, session).encode())


def public_id(secret: bytes, name: str) -> str:
    """A name that raters may see for one that they must not: no hash that they could check."""
    return _mac(secret, "name", name)[:16]


def _mac(secret: bytes, purpose: str, text: str) -> str:
    return hmac.new(secret, f"{purpose}\n{text}".encode(), "sha256").hexdigest()

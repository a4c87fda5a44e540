"""Who asks, and what they may: tokens for programs, sessions for browsers, one-time codes that open the first of them.

Of every secret only its hash is kept: 32 random bytes need no slow one.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, select

from prism.errors import ConfigError
from prism.services.console.store.engine import Store
from prism.services.console.store.models import SCOPES, Audit, Code, Session, Token

CODE_SECONDS = 900
PREFIX = "prism_"  # by which a token is recognised where one has leaked


@dataclass(frozen=True)
class Identity:
    name: str
    scope: str
    by_cookie: bool
    """Sent by a browser of itself, so that a request that changes something must prove where it came from."""

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def new_token(store: Store, name: str, scope: str, who: str) -> str:
    """Make a token, which is returned once and kept nowhere. Raises ConfigError for a name that is taken."""
    if scope not in SCOPES:
        raise ConfigError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    token = PREFIX + secrets.token_urlsafe(32)
    with store.write() as session:
        if session.scalar(select(Token.id).where(Token.name == name)):
            raise ConfigError(f"there is a token called {name!r} already: choose another name")
        session.add(Token(name=name, sha256=_hash(token), scope=scope, created=time.time(), created_by=who))
    return token


def revoke_token(store: Store, token: int) -> str:
    """A token that no longer opens anything, nor do sessions opened with it; returns its name. Raises ConfigError."""
    with store.write() as session:
        found = session.get(Token, token)
        if found is None or found.revoked:
            raise ConfigError(f"there is no token {token} in use")
        found.revoked = time.time()
        session.execute(delete(Session).where(Session.token == token))
        return found.name


def new_code(store: Store, who: str, scope: str = "admin") -> str:
    """A code that opens one session, once, within a quarter of an hour."""
    code = secrets.token_urlsafe(24)
    with store.write() as session:
        session.execute(delete(Code).where(Code.expires < time.time()))
        session.add(Code(sha256=_hash(code), scope=scope, who=who, expires=time.time() + CODE_SECONDS))
    return code


def sign_in(store: Store, secret: str, hours: float) -> tuple[str, Identity] | None:
    """The cookie of a new session, and whose it is; None for what is neither a code nor a token in use."""
    cookie = secrets.token_urlsafe(32)
    now = time.time()
    with store.write() as session:
        session.execute(delete(Session).where(Session.expires < now))
        code = session.scalar(select(Code).where(Code.sha256 == _hash(secret), Code.expires >= now))
        token = session.scalar(select(Token).where(Token.sha256 == _hash(secret), Token.revoked.is_(None)))
        if code:
            identity = Identity(code.who, code.scope, True)
            session.delete(code)
        elif token:
            identity = Identity(token.name, token.scope, True)
        else:
            return None
        session.add(
            Session(
                sha256=_hash(cookie),
                who=identity.name,
                scope=identity.scope,
                token=token.id if token else None,
                created=now,
                expires=now + 3600 * hours,
            )
        )
    return cookie, identity


def sign_out(store: Store, cookie: str) -> None:
    with store.write() as session:
        session.execute(delete(Session).where(Session.sha256 == _hash(cookie)))


def of_token(store: Store, token: str) -> Identity | None:
    with store.read() as session:
        found = session.scalar(select(Token).where(Token.sha256 == _hash(token), Token.revoked.is_(None)))
    return Identity(found.name, found.scope, False) if found else None


def of_cookie(store: Store, cookie: str) -> Identity | None:
    with store.read() as session:
        found = session.scalar(select(Session).where(Session.sha256 == _hash(cookie), Session.expires >= time.time()))
    return Identity(found.who, found.scope, True) if found else None


def tokens(store: Store) -> list[Token]:
    with store.read() as session:
        return list(session.scalars(select(Token).order_by(Token.id)))


def record(store: Store, who: str, address: str, action: str, target: str, detail: str = "") -> None:
    """Add a row to the audit log."""
    with store.write() as session:
        session.add(
            Audit(at=time.time(), who=who, address=address, action=action, target=target[:300], detail=detail[:2000])
        )


def audit(store: Store, limit: int = 500) -> list[Audit]:
    """The newest first."""
    with store.read() as session:
        return list(session.scalars(select(Audit).order_by(Audit.id.desc()).limit(limit)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

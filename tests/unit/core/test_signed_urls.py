"""URLs that let their bearer send a part without a key."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mixpeek_ray.core.errors import InvalidApiKeyError
from mixpeek_ray.core.keys import KeyRing, KeyRingSnapshot, digest_key
from mixpeek_ray.core.records import ApiKey, Organization, Role, Tier

NOW = datetime.now(UTC)
PATH = "/v1/models/uploads/upl_1/parts/1"
KEY = ApiKey(
    key_id="key_1", organization_id="org_1", name="k", role=Role.WRITE, digest=digest_key(b"s", "sk_x"), created_at=NOW
)
SNAPSHOT = KeyRingSnapshot(
    version="1",
    secret=b"s",
    keys=(KEY,),
    organizations=(Organization(organization_id="org_1", name="acme", tier=Tier.PRO, created_at=NOW),),
)


def sign(*, expires_in: timedelta = timedelta(days=1), key_id: str = "key_1") -> str:
    return KeyRing(SNAPSHOT).sign_url(key_id, PATH, NOW + expires_in)


def test_the_bearer_is_the_key_that_signed():
    principal = KeyRing(SNAPSHOT).authenticate_url(PATH, sign())
    assert (principal.key_id, principal.organization.organization_id, principal.role) == ("key_1", "org_1", Role.WRITE)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (PATH.replace("parts/1", "parts/2"), sign()),
        (PATH.replace("upl_1", "upl_2"), sign()),
        (PATH, sign(expires_in=timedelta(seconds=-1))),
        (PATH, sign().replace("expires=1", "expires=2")),
        (PATH, sign().replace("key_1", "key_2")),
        (PATH, sign(key_id="key_2")),
        (PATH, sign()[:-1]),
        (PATH, sign() + "0"),
        (PATH, sign().replace("signature=", "signature=%C3%A9")),
        (PATH, "key_id=key_1&expires=&signature="),
        (PATH, "signature=" + "&a=b" * 1000),
        (PATH, ""),
    ],
)
def test_whatever_was_changed_is_refused(path: str, query: str):
    with pytest.raises(InvalidApiKeyError):
        KeyRing(SNAPSHOT).authenticate_url(path, query)


def test_a_revoked_key_takes_its_urls_along():
    revoked = replace(SNAPSHOT, keys=(replace(KEY, revoked_at=NOW),))
    with pytest.raises(InvalidApiKeyError):
        KeyRing(revoked).authenticate_url(PATH, sign())


def test_another_platforms_secret_signs_nothing_here():
    with pytest.raises(InvalidApiKeyError):
        KeyRing(replace(SNAPSHOT, secret=b"other")).authenticate_url(PATH, sign())

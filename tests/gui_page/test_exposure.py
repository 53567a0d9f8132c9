"""Who can reach the page, and which requests are let in."""

import pytest

from kohya_gui.exposure import SameSite, decide, is_loopback
from kohya_gui.localization import Words
from sd_scripts.schema.errors import UserError


def test_loopback_needs_no_login() -> None:
    made = decide("127.0.0.1", share=False, username="", password="")
    assert made.auth is None and made.local
    assert made.sentence(Words({})) == "Only this machine can reach the page."


@pytest.mark.parametrize(
    ("listen", "share"),
    [
        ("0.0.0.0", False),
        ("192.168.1.4", False),
        ("127.0.0.1", True),
        ("::", False),
        ("[::]", False),
        ("0", False),
        ("gpu-box", False),
        ("::ffff:192.168.1.4", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_open_to_others_makes_a_password_where_none_was_given(listen: str, share: bool) -> None:
    first, second = (decide(listen, share, "", "") for _ in range(2))
    assert first.auth and second.auth and first.generated and not first.local
    assert len(first.auth[1]) >= 16 and first.auth[1] != second.auth[1]
    assert "password" in first.sentence(Words({}))


def test_addresses_of_ipv6_are_taken_with_and_without_brackets() -> None:
    assert decide("::", False, "", "").listen == decide("[::]", False, "", "").listen == "[::]"
    assert decide("::1", False, "", "").local and not decide("fe80::1", False, "", "").local
    assert "over the network" in decide("::", False, "", "").sentence(Words({}))


def test_a_given_login_is_used() -> None:
    made = decide("0.0.0.0", share=False, username="ann", password="secret")
    assert made.auth == ("ann", "secret") and not made.generated


@pytest.mark.parametrize(("name", "password"), [("ann", ""), ("", "secret")])
def test_half_a_login_is_refused(name: str, password: str) -> None:
    with pytest.raises(UserError, match="name and a password"):
        decide("127.0.0.1", share=False, username=name, password=password)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "::")))


LOCAL = SameSite(None, local_only=True)
OPEN = SameSite(None, local_only=False)


@pytest.mark.parametrize(
    ("guard", "method", "headers", "passes"),
    [
        (LOCAL, "GET", {"host": "127.0.0.1:7860"}, True),
        (LOCAL, "GET", {"host": "localhost:7860"}, True),
        (LOCAL, "GET", {"host": "[::1]:7860"}, True),
        (LOCAL, "GET", {"host": "evil.example"}, False),
        (LOCAL, "GET", {"host": "127.0.0.1.evil.example"}, False),
        (LOCAL, "POST", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
        (LOCAL, "POST", {"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        (LOCAL, "POST", {"host": "127.0.0.1:7860", "origin": "null"}, False),
        (
            LOCAL,
            "POST",
            {"host": "127.0.0.1:7860", "x-forwarded-host": "evil.example", "origin": "http://evil.example"},
            False,
        ),
        (LOCAL, "POST", {"host": "127.0.0.1:7860"}, True),
        (OPEN, "POST", {"host": "gpu.example", "origin": "https://gpu.example"}, True),
        (OPEN, "POST", {"host": "gpu.example", "origin": "https://other.example"}, False),
        (OPEN, "GET", {"host": "gpu.example", "origin": "https://other.example"}, False),
        (OPEN, "GET", {"host": "gpu.example", "origin": "null"}, False),
        (OPEN, "POST", {"host": "", "origin": "null"}, False),
        (OPEN, "POST", {"host": "gpu.example", "origin": ""}, False),
        (OPEN, "POST", {"host": "gpu.example", "origin": "https://gpu.example:8443"}, True),
        (OPEN, "POST", {"host": "gpu.example:8443", "origin": "https://gpu.example"}, False),
        (OPEN, "POST", {"host": "gpu.example:443", "origin": "https://gpu.example"}, True),
        (OPEN, "POST", {"host": "[fe80::1]:7860", "origin": "http://[fe80::1]:7860"}, True),
        (OPEN, "POST", {"host": "[fe80::1]:7860", "origin": "http://[fe80::2]:7860"}, False),
        (LOCAL, "POST", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:6006"}, False),
        (LOCAL, "POST", {"host": "localhost", "origin": "http://localhost:6006"}, False),
        (LOCAL, "GET", {"host": "127.0.0.1:7860", "sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, False),
        (LOCAL, "GET", {"host": "127.0.0.1:7860", "sec-fetch-site": "same-origin"}, True),
        (LOCAL, "GET", {"host": "127.0.0.1:7860", "sec-fetch-site": "none"}, True),
        (LOCAL, "GET", {"host": ""}, False),
        (LOCAL, "GET", {}, False),
        (LOCAL, "GET", {"host": "rebound.example:7860"}, False),
        (LOCAL, "CONNECT", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:1"}, False),
        (OPEN, "POST", {"host": "127.0.0.1", "x-forwarded-host": "gpu.example", "origin": "https://gpu.example"}, True),
    ],
)
def test_requests_of_other_sites_are_refused(
    guard: SameSite, method: str, headers: dict[str, str], passes: bool
) -> None:
    assert guard.allows(method, headers) is passes

"""Limits as settings write them, and the bucket that counts within a process."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions_api.access.keyring import mint
from sessions_api.api.gate import Policies
from sessions_api.domain.limits import FORM, Bucket, Limit, parse_limit
from sessions_api.errors import SettingsError
from sessions_api.settings import VARIABLES, Settings

LINE, _ = mint("shop", ["app"])
LIMITS = [name for name in VARIABLES if name.startswith("SESSIONS_LIMIT_")]
SHIPPED = Policies(
    creates_ip=Limit(10, 60),
    creates_key=Limit(100, 1),
    messages_session_ip=Limit(100, 60),
    messages_key=Limit(1000, 1),
    requests_key=Limit(2000, 1),
    requests_ip=Limit(500, 1),
)
NO_LIMITS = [
    "10", "10/", "/60", "0/60", "10/0", "10/86401", "-1/60", "10000000/1", "1.5/60", "10/60s", "1e3/1",
    "10 / 60", "10/60/60", "on", "none", "unlimited", "0", "\N{ARABIC-INDIC DIGIT THREE}/60",
]  # fmt: skip
NO_ORIGINS = [
    "*", "null", "https://*.example", "https://shop.example/", "https://Shop.example", "shop.example", "https://",
    "https://me@shop.example", "https://shop.example/chat", "https://shop.example:443", "http://a.example:80",
]  # fmt: skip


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.problems


class TestPolicies:
    def test_those_that_hold_where_nothing_is_set(self) -> None:
        assert Settings.from_env({}).policies == SHIPPED
        assert Settings.from_env({}).sessions_limits_without_redis == "closed"

    def test_each_has_its_setting(self) -> None:
        named = [f"SESSIONS_LIMIT_{name.upper()}" for name in Policies.__struct_fields__]

        chosen = Settings.from_env({name: f"{number}/60" for number, name in enumerate(named, 1)}).policies

        assert named == LIMITS
        assert [getattr(chosen, name) for name in Policies.__struct_fields__] == [
            Limit(number, 60) for number in range(1, len(named) + 1)
        ]

    @pytest.mark.parametrize("name", LIMITS)
    @pytest.mark.parametrize("word", ["off", "OFF", " off "])
    def test_any_may_be_off(self, name: str, word: str) -> None:
        policies = Settings.from_env({name: word}).policies

        assert getattr(policies, name.removeprefix("SESSIONS_LIMIT_").lower()) is None

    @pytest.mark.parametrize("name", LIMITS)
    @pytest.mark.parametrize("value", NO_LIMITS)
    def test_anything_else_is_refused(self, name: str, value: str) -> None:
        assert problems(**{name: value}) == [f"{name}={value!r}: allowed is {FORM}"]

    def test_where_redis_is_away_is_one_of_two(self) -> None:
        assert problems(SESSIONS_LIMITS_WITHOUT_REDIS="open") == [
            "SESSIONS_LIMITS_WITHOUT_REDIS='open': allowed is closed | local"
        ]

    def test_by_address_are_off_in_dev_unless_they_are_set(self) -> None:
        """A developer's loops and tests all come from one address; keys have theirs all the same."""
        dev = Settings.from_env({"SESSIONS_DEV": "on"}).policies
        chosen = Settings.from_env({"SESSIONS_DEV": "on", "SESSIONS_LIMIT_CREATES_IP": "3/60"}).policies

        assert (dev.creates_ip, dev.messages_session_ip, dev.requests_ip) == (None, None, None)
        assert (dev.creates_key, dev.messages_key, dev.requests_key) == (
            SHIPPED.creates_key, SHIPPED.messages_key, SHIPPED.requests_key
        )  # fmt: skip
        assert (chosen.creates_ip, chosen.messages_session_ip) == (Limit(3, 60), None)

    @given(st.text(max_size=20))
    def test_what_is_read_is_a_limit(self, text: str) -> None:
        try:
            limit = parse_limit(text)
        except ValueError:
            return
        assert limit is None or (0 < limit.quota < 10**7 and 0 < limit.window_s <= 86_400)


class TestProxies:
    def test_are_networks_and_addresses(self) -> None:
        settings = Settings.from_env({"SESSIONS_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1 fd00::/8"})

        assert [str(network) for network in settings.trusted_proxies] == [
            "10.0.0.0/8",
            "127.0.0.1/32",
            "fd00::/8",
        ]
        assert Settings.from_env({}).trusted_proxies == ()

    @pytest.mark.parametrize(
        "value", ["*", "all", "10.0.0.1/8", "10.0.0.0/33", "proxy.example", "10.0.0.1;::1"]
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        (problem,) = problems(SESSIONS_TRUSTED_PROXIES=value)

        assert problem.startswith(f"SESSIONS_TRUSTED_PROXIES={value!r}: ")
        assert problem.endswith(
            "allowed are networks and addresses with commas between, like 10.1.0.0/16,192.168.7.20"
        )


class TestOrigins:
    def test_are_a_list(self) -> None:
        value = "https://shop.example, http://localhost:5173\nhttp://[::1]:8080 app://chat"

        settings = Settings.from_env({"SESSIONS_KEYS": LINE, "SESSIONS_CORS_ORIGINS": value})

        assert settings.cors_origins == {
            b"https://shop.example", b"http://localhost:5173", b"http://[::1]:8080", b"app://chat"
        }  # fmt: skip

    @pytest.mark.parametrize("value", NO_ORIGINS)
    def test_anything_else_is_refused(self, value: str) -> None:
        """What no browser sends would never help, and a star always would."""
        (problem,) = problems(SESSIONS_KEYS=LINE, SESSIONS_CORS_ORIGINS=value)

        assert problem.startswith(
            f"SESSIONS_CORS_ORIGINS={value!r} is no origin as browsers write it: allowed is "
        )

    def test_need_a_key(self) -> None:
        """Without one every listed page could read every conversation."""
        (problem,) = problems(SESSIONS_CORS_ORIGINS="https://shop.example")

        assert re.match("SESSIONS_CORS_ORIGINS is set and no access key is", problem)


class TestBucket:
    @given(
        per_s=st.floats(0.1, 1000),
        burst=st.integers(1, 50),
        gaps_s=st.lists(st.floats(0, 2) | st.just(0.0), max_size=200),
    )
    def test_admits_the_burst_and_then_no_more_than_its_rate(
        self, per_s: float, burst: int, gaps_s: list[float]
    ) -> None:
        bucket, now_s, admitted = Bucket(per_s, burst), 1_000_000.0, 0
        started_s = now_s
        for asked, gap_s in enumerate(gaps_s):
            now_s += gap_s
            admitted += bucket.allows(now_s)
            assert admitted <= burst + (now_s - started_s) * per_s + 1e-6
            assert admitted >= min(asked + 1, burst)

        assert bucket.allows(now_s + 1 / per_s + 1e-6)

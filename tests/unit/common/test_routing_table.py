"""Which hosts a model's requests may go to, whatever the policy."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.routing.table import POLICIES, RoutingTable

STATES = (pb.HOST_STATE_STARTING, pb.HOST_STATE_SERVING, pb.HOST_STATE_DRAINING, pb.HOST_STATE_DOWN)


def host(
    name: str, *models: str, engine: str = "vllm", state: int = pb.HOST_STATE_SERVING, in_flight: int = 0
) -> pb.Host:
    """A host's report; `adapter@base` is an adapter."""
    rows = []
    for model in models:
        own, _, base = model.partition("@")
        rows.append(pb.Model(name=own, base=base, card_json=f'"{own} on {name}"'.encode()))
    return pb.Host(
        name=name,
        incarnation=f"{name}-1",
        address=f"unix:{name}",
        engine=engine,
        state=pb.HostState.Name(state),
        models=rows,
        load=pb.HostLoad(in_flight=in_flight),
    )


def table(
    *hosts: pb.Host, policy: str = "least_loaded", mapping: dict[str, str] | None = None, absent: tuple[str, ...] = ()
) -> RoutingTable:
    built = RoutingTable()
    built.apply(
        pb.WatchTableResponse(
            version=1, hosts=hosts, policy=policy, model_backend_mapping=mapping or {}, absent_models=absent
        )
    )
    return built


def names(built: RoutingTable, model: str | None) -> list[str]:
    return [host.name for host in built.candidates(model)]


def test_empty_table_has_no_host() -> None:
    assert RoutingTable().pick("m") is None
    assert RoutingTable().pick(None) is None
    assert not RoutingTable().models()


def test_model_goes_to_the_hosts_that_have_it() -> None:
    built = table(host("b", "m1", "lora@m1"), host("a", "m1"), host("c", "m2"))
    assert names(built, "m1") == ["a", "b"]
    assert names(built, "lora") == ["b"]
    assert names(built, "m2") == ["c"]


def test_unknown_and_missing_model_go_to_any_serving_host() -> None:
    built = table(host("a", "m1"), host("b", "m2"), host("c", "m3", state=pb.HOST_STATE_DRAINING))
    assert names(built, "nobody") == ["a", "b"]
    assert names(built, None) == ["a", "b"]
    assert names(built, "") == ["a", "b"]


def test_model_of_a_host_that_does_not_serve_is_not_sent_to_another() -> None:
    built = table(host("a", "m1"), host("b", "m2", state=pb.HOST_STATE_DRAINING), absent=("m3", "m1"))
    assert names(built, "m2") == []
    assert names(built, "m3") == []
    assert names(built, "m1") == ["a"]


def test_mapping_pins_a_base_model_and_its_adapters_to_an_engine() -> None:
    built = table(
        host("s", "m", "lora@m", engine="sglang"),
        host("v", "m", "lora@m", engine="vllm"),
        mapping={"m": "sglang"},
    )
    assert names(built, "m") == ["s"]
    assert names(built, "lora") == ["s"]


def test_mapping_of_a_model_that_nobody_has_goes_to_that_engine() -> None:
    hosts = (host("s", "x", engine="sglang"), host("v", "y", engine="vllm"))
    assert names(table(*hosts, mapping={"m": "sglang"}), "m") == ["s"]
    assert names(table(*hosts, mapping={"m": "sim"}), "m") == []


def test_mapped_model_whose_host_is_away_waits_for_it() -> None:
    other = host("s", "x", engine="sglang")
    draining = host("t", "m", engine="sglang", state=pb.HOST_STATE_DRAINING)
    assert names(table(other, draining, mapping={"m": "sglang"}), "m") == []
    assert names(table(other, mapping={"m": "sglang"}, absent=("m",)), "m") == []


def test_excluded_hosts_are_not_picked() -> None:
    built = table(host("a", "m"), host("b", "m"))
    assert {picked.name for _ in range(20) if (picked := built.pick("m", exclude={"a"}))} == {"b"}
    assert built.pick("m", exclude={"a", "b"}) is None


def test_models_are_merged_base_first_with_the_first_hosts_card() -> None:
    built = table(host("b", "m", "l1@m"), host("a", "m", "l2@m"), host("c", "gone", state=pb.HOST_STATE_DOWN))
    assert [(row.name, row.base, row.hosts) for row in built.models()] == [
        ("m", "", ("a", "b")),
        ("l2", "m", ("a",)),
        ("l1", "m", ("b",)),
    ]
    assert built.models()[0].card_json == b'"m on a"'


def test_own_requests_are_not_counted_twice() -> None:
    built = RoutingTable()
    built.apply(pb.WatchTableResponse(hosts=[host("a", "m", in_flight=10), host("b", "m", in_flight=3)]), {"a": 10})
    assert [h.others_in_flight for h in built.candidates("m")] == [0, 3]
    picked = built.pick("m", {"a": 0})
    assert picked is not None
    assert picked.name == "a"


def test_news_of_loads_changes_loads_and_nothing_else() -> None:
    built = table(host("a", "m", in_flight=1), host("b", "m", in_flight=5), absent=("gone",))
    news = pb.WatchTableResponse(
        version=2,
        hosts=[pb.Host(name="a", load=pb.HostLoad(in_flight=9)), pb.Host(name="new", load=pb.HostLoad(in_flight=1))],
        loads_only=True,
    )
    built.apply(news, {"a": 2})
    assert built.version == 2
    assert [(h.name, h.others_in_flight) for h in built.candidates("m")] == [("a", 7), ("b", 5)]
    assert sorted(built.hosts) == ["a", "b"]
    assert names(built, "gone") == []
    assert [row.name for row in built.models()] == ["m"]


@settings(deadline=None)
@given(
    hosts=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(STATES), st.sets(st.sampled_from(["m1", "m2", "m3"]))),
        max_size=8,
        unique_by=lambda h: h[0],
    ),
    policy=st.sampled_from(sorted(POLICIES)),
    model=st.sampled_from(["m1", "m2", "m3", "unknown", None]),
    exclude=st.sets(st.sampled_from("abcdefgh")),
)
def test_only_serving_hosts_are_ever_picked(
    hosts: list[tuple[str, int, set[str]]], policy: str, model: str | None, exclude: set[str]
) -> None:
    built = table(*(host(name, *models, state=state) for name, state, models in hosts), policy=policy)
    picked = built.pick(model, exclude=exclude)
    known = any(model in models for _, _, models in hosts)
    allowed = {
        name
        for name, state, models in hosts
        if state == pb.HOST_STATE_SERVING and name not in exclude and (model in models or not known)
    }
    assert (picked is None) == (not allowed)
    assert picked is None or picked.name in allowed


def test_the_base_behind_a_name() -> None:
    built = table(host("a", "base", "alias", "pirate@base"))
    assert [built.base_of(name, "a") for name in ("base", "alias", "pirate")] == ["base", "alias", "base"]
    assert built.base_of("resolved-just-now", "a") == "base", "what the host serves"
    assert built.base_of("nonsense") == built.base_of("x", "gone") == ""

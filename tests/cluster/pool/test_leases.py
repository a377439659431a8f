from condkd_ray.cluster.pool.leases import SILENCE_SECONDS, Leases


def test_one_holds_it_until_released():
    leases = Leases()
    assert leases.claim("k", "a")
    assert leases.claim("k", "a")
    assert not leases.claim("k", "b")
    assert leases.claim("other", "b")
    leases.release("k", "b")
    assert leases.holder("k") == "a"
    leases.release("k", "a")
    assert leases.holder("k") == ""
    assert leases.claim("k", "b")


def test_the_silent_lose_it():
    now = [100.0]
    leases = Leases(lambda: now[0])
    assert leases.claim("k", "a")
    now[0] += SILENCE_SECONDS - 1
    assert not leases.claim("k", "b")
    assert leases.claim("k", "a")  # a sign of life
    now[0] += SILENCE_SECONDS - 1
    assert not leases.claim("k", "b")
    now[0] += 2
    assert leases.claim("k", "b")
    assert not leases.claim("k", "a")
    leases.release("k", "a")
    assert leases.holder("k") == "b"

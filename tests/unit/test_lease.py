"""A challenger's share, as long as somebody answers for it."""

from shopfloor.serving.contract import LEASE_ENDED, LEASE_KEPT
from shopfloor.serving.replica.versions import Lease

UNIX_S = 1_800_000_000.0


def test_a_lease_that_is_renewed_goes_on_and_one_that_is_not_runs_out():
    lease = Lease()
    assert lease.holds(f"{UNIX_S}", 0, UNIX_S)
    assert lease.holds(f"{UNIX_S}", 59, UNIX_S + 59)
    assert not lease.holds(f"{UNIX_S}", 61, UNIX_S + 61)
    assert lease.holds(f"{UNIX_S + 61}", 62, UNIX_S + 62)


def test_the_clock_of_another_machine_decides_nothing_once_a_renewal_was_seen():
    lease = Lease()
    lease.holds("1000.0", 0, UNIX_S)
    assert lease.holds("1010.0", 10, UNIX_S + 10)
    assert not lease.holds("1010.0", 71, UNIX_S + 71)


def test_a_replica_that_begins_gives_no_share_to_a_trial_that_was_left_long_ago():
    assert not Lease().holds(f"{UNIX_S - 3600}", 5, UNIX_S)
    assert Lease().holds(f"{UNIX_S - 5}", 5, UNIX_S)


def test_a_share_that_a_person_gave_stays_and_one_that_was_given_up_ends():
    assert Lease().holds(LEASE_KEPT, 1e9, UNIX_S)
    assert not Lease().holds(LEASE_ENDED, 0, UNIX_S)
    assert not Lease().holds("whatever", 0, UNIX_S)


def test_a_lease_holds_for_as_long_as_it_says():
    lease = Lease()
    assert lease.holds(f"{UNIX_S}+2", 0, UNIX_S)
    assert not lease.holds(f"{UNIX_S}+2", 3, UNIX_S + 3)
    assert not Lease().holds(f"{UNIX_S - 5}+2", 100, UNIX_S)
    assert Lease().holds(f"{UNIX_S - 50}+long", 100, UNIX_S)

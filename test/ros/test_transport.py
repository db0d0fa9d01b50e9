"""`vla doctor` counts the images that reach another process, and says what to do."""

import pytest

from vla_policy_node.commands import doctor, transport
from vla_policy_node.commands.transport import Pairs, TransportError
from vla_policy_node.system.processes import PROFILES, middleware_environment


@pytest.fixture
def measured(monkeypatch):
    """Set what the measurements find, in turn; return with which environments they were made."""
    drivers = []
    for name, _ in PROFILES.values():
        monkeypatch.delenv(name, raising=False)

    def find(*results):
        left = list(results)

        def measure(duration_s, driver, on_sent):
            drivers.append(driver)
            on_sent(1)
            result = left.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(transport, 'measure', measure)
        return drivers

    return find


def check(said=None):
    return doctor.check_transport(2.0, [].append if said is None else said.append)


def test_pairs_are_sent_from_process_to_process_and_counted():
    sent = []
    pairs = transport.measure(1.0, middleware_environment(), sent.append)
    assert sent == list(range(1, 16))
    assert pairs.sent == 15
    assert 0 < pairs.arrived <= 15  # with the profile all, unless the machine is very busy
    assert pairs.rate_hz == pytest.approx(15, rel=0.3)


def test_what_ends_a_process_is_said(monkeypatch):
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_of_nobody')
    with pytest.raises(TransportError, match='rmw_of_nobody'):
        transport.measure(1.0, {})


def test_the_second_measurement_is_only_made_if_the_first_one_loses_pairs(measured):
    drivers, said = measured(Pairs(59, 60, 15.0)), []
    finding = check(said)
    assert finding.sound and '59 of 60 pairs' in finding.found
    assert drivers == [{}]  # as a camera driver that is started in this terminal
    assert said  # progress


def test_where_the_profile_helps_the_drivers_shall_have_it(measured):
    drivers = measured(Pairs(2, 60, 15.0), Pairs(60, 60, 15.0))
    finding = check()
    assert drivers == [{}, middleware_environment()]
    assert not finding.sound and '2 of 60 pairs' in finding.found
    assert '60 of 60 pairs' in finding.remedy
    ((name, profile),) = middleware_environment().items()
    assert f'{name}={profile}' in finding.remedy


def test_where_it_does_not_help_memory_and_buffers_are_named(measured, monkeypatch):
    measured(Pairs(2, 60, 15.0), Pairs(2, 60, 15.0))
    assert 'net.core.rmem_max' in check().remedy
    drivers = measured(Pairs(2, 60, 15.0))
    drivers.clear()
    monkeypatch.setenv(PROFILES[2][0], '/my/profile.xml')
    finding = check()
    assert drivers == [{}]  # ours is never tried against theirs
    assert 'net.core.rmem_max' in finding.remedy and '/dev/shm' in finding.remedy


def test_a_busy_machine_is_named(measured, monkeypatch):
    measured(Pairs(30, 60, 15.0), Pairs(30, 60, 15.0))
    monkeypatch.setattr(transport.os, 'getloadavg', lambda: (99.0, 0.0, 0.0))
    assert 'busy (load 99' in check().remedy


def test_what_was_not_measured_is_not_called_lost(measured):
    measured(TransportError('nobody was found'))
    finding = check()
    assert not finding.found and 'nobody was found' in finding.remedy and not finding.needed

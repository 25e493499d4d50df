//! Workers that come back, and that must not.

use crate::processes::Cluster;
use tests::machine;

/// Leases that do not end while a test runs.
fn long() -> Vec<String> {
    vec!["alluxio.worker.failure.detection.timeout=30min".into()]
}

#[test]
fn a_worker_that_was_killed_is_back_before_its_lease_ends() {
    let Some(mut cluster) = Cluster::start_with(1, long()) else { return };
    let identity = cluster.workers[0].identity();
    for _ in 0..2 {
        cluster.workers[0].kill();
        // One that was killed right after it registered had not said so yet.
        let said = |cluster: &Cluster| cluster.workers[0].log().matches(" serves at ").count();
        let before = said(&cluster);
        cluster.workers[0].start_again();
        machine::wait_for("the worker to be back", || (said(&cluster) > before).then_some(()));
    }
    assert_eq!(cluster.live(), [identity]);
    // And ends in good order, which no lease delays.
    cluster.workers[0].signal(nix::sys::signal::Signal::SIGTERM);
    cluster.wait_for_live(0);
}

#[test]
fn a_copy_of_a_live_identity_is_refused_by_name() {
    let Some(mut cluster) = Cluster::start_with(2, long()) else { return };
    let (one, two) = (cluster.workers[0].home().to_owned(), cluster.workers[1].home().to_owned());
    let identity = cluster.workers[0].identity();
    cluster.workers[1].kill();
    // As when a volume was cloned: all that is known of the other one comes along.
    for end in ["", ".lock"] {
        std::fs::copy(one.join(format!("identity{end}")), two.join(format!("identity{end}"))).unwrap();
    }
    let before = cluster.workers[1].log().len();
    cluster.workers[1].start_again();
    let refused = format!("{identity} is live at");
    machine::wait_for("the refusal", || cluster.workers[1].log()[before..].contains(&refused).then_some(()));
    assert!(cluster.live().contains(&identity));
}

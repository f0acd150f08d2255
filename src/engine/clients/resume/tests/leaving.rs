//! Stories of what was under way at the connection that a session leaves.

use super::*;
use crate::engine::clients::token_turns::VERIFICATIONS_PER_TURN;

#[test]
fn a_token_that_waits_for_its_turn_is_answered_when_its_session_leaves_the_connection() {
    let mut rig = Rig::one();
    let (id, before) = rig.opts_in_as("ann");
    let other = rig.signs_in("ann");
    // More tokens than a turn verifies.
    for n in 0..VERIFICATIONS_PER_TURN {
        let busy = rig.open();
        rig.shards[0].on_bytes(busy, &mut auth(1, &token(&format!("user{n}"))), rig.now);
    }
    rig.shards[0].on_bytes(id, &mut auth(9, &token("ann")), rig.now);
    let shown = resume(2, &before, 0);
    rig.shards[0].on_bytes(other, &mut frame(&shown), rig.now);
    rig.shards[0].check_invariants().expect("consistent");
    let told = rig.told(other);
    is(&told, "resumed", "", &[1]);
    assert_eq!((&told[1]["seq"], &told[1]["reason"]), (&9.into(), &"UNAVAILABLE".into()));
    assert_eq!(told[0]["payload"]["received_seq"], 9);
}

//! Answers that are large: none is lost because of the others, and no client is closed for them.

use super::regressions::{Rig, snapshot};
use super::*;
use crate::engine::clients::conn::{Hold, Phase};

/// Requests of a call.
fn requests(call: &mut Call) -> BatchRequest {
    let length = call.body.remaining();
    let body = call.body.copy_to_bytes(length);
    BatchRequest::decode(&body[5..]).expect("a batch")
}

/// Answers every request of a call with a JSON string of `bytes` bytes.
fn answer(rig: &mut Rig, mut call: Call, bytes: usize) -> usize {
    let ids: Vec<u64> = requests(&mut call).requests.iter().map(|r| r.request_id).collect();
    let payload = format!("\"{}\"", "x".repeat(bytes - 2));
    let responses = ids.iter().map(|&request_id| BaseResponse {
        request_id,
        payload: payload.clone().into(),
        ..Default::default()
    });
    let body: bytes::Bytes = BatchResponse { responses: responses.collect(), ..Default::default() }
        .encode_to_vec()
        .into();
    assert!(body.len() <= call.answer_bytes_max, "{} of {}", body.len(), call.answer_bytes_max);
    rig.engine.on_outcome(Outcome { ticket: call.ticket, result: Ok(body) }, rig.now);
    rig.engine.end_turn(rig.now);
    ids.len()
}

fn calls(rig: &mut Rig) -> Vec<Call> {
    std::mem::take(&mut rig.engine.effects.calls)
}

#[test]
fn a_batch_may_answer_as_much_as_all_its_receivers_can_take() {
    let settings = ShardSettings::default();
    let outbox = settings.conn.outbox_bytes_max;
    let mut rig = Rig::new(snapshot(1), settings);
    // Those that find the slots taken leave as one full batch.
    let clients: Vec<ConnId> = (0..200).map(|_| rig.client()).collect();
    for id in &clients {
        rig.says(*id, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    }
    let mut answered = 0;
    for _ in 0..200 {
        rig.later(10);
        let Some(call) = calls(&mut rig).pop() else { break };
        answered += answer(&mut rig, call, outbox);
    }
    for id in clients {
        answered -= usize::from(rig.told(id).contains("\"payload\":\"xxx"));
    }
    assert_eq!(answered, 0, "each has its answer");
}

#[test]
fn batches_become_smaller_where_answers_are_large_and_full_again_where_they_are_not() {
    let mut settings = ShardSettings::default();
    settings.batch.eager_max = 1;
    settings.batch.in_flight_max = 1;
    let mut rig = Rig::new(snapshot(1), settings);
    let clients: Vec<ConnId> = (0..101).map(|_| rig.client()).collect();
    let round = |rig: &mut Rig, seq: u32, bytes: usize| {
        let text = format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#);
        clients.iter().for_each(|id| rig.says(*id, &text));
        let mut largest = 0;
        loop {
            let Some(call) = calls(rig).pop() else { break };
            largest = answer(rig, call, bytes).max(largest);
        }
        clients.iter().for_each(|id| assert!(rig.told(*id).contains("xxx")));
        largest
    };
    assert_eq!(round(&mut rig, 1, 100), 100);
    // The first call has one message, which tells.
    let learned = round(&mut rig, 2, 500_000);
    assert!((4..=16).contains(&learned), "4 MiB of 500 kB (rounded up to 512 KiB): {learned}");
    // A minute later what was large is forgotten.
    let mut at_last = 0;
    for seq in 3..12 {
        at_last = round(&mut rig, seq, 100);
        rig.later(10_000);
    }
    assert_eq!(at_last, 100);
}

#[test]
fn a_client_that_reads_large_answers_as_they_come_is_not_closed_for_the_first_burst() {
    let settings = ShardSettings::default();
    let outbox = settings.conn.outbox_bytes_max;
    let mut rig = Rig::new(snapshot(1), settings);
    let id = rig.client();
    let phase = |rig: &Rig, id| rig.engine.clients.conns.get(id).map(|conn| conn.phase);
    // 30 answers of 60,000 bytes are 1.8 MB.
    for seq in 1..=30 {
        rig.says(id, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#));
    }
    while let Some(call) = calls(&mut rig).pop() {
        answer(&mut rig, call, 60_000);
    }
    assert!(rig.engine.outbox(id).len() > outbox);
    while !rig.engine.outbox(id).is_empty() {
        // A slow network takes some of them.
        let taken = rig.engine.outbox(id).len().min(50_000);
        rig.engine.on_sent(id, taken, rig.now);
        assert_eq!(phase(&rig, id), Some(Phase::Open));
        rig.later(500);
    }
    // From now on it is asked for no more than its outbox takes.
    let mut seq = 30;
    while !rig.engine.is_paused(id) {
        seq += 1;
        rig.says(id, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#));
    }
    assert!((8..=17).contains(&(seq - 30)), "1 MiB of 60 kB: {}", seq - 30);
    rig.engine.check_invariants().expect("consistent");
    while let Some(call) = calls(&mut rig).pop() {
        answer(&mut rig, call, 60_000);
    }
    assert!(rig.engine.is_paused(id), "the answers are not taken yet");
    rig.told(id);
    assert!(!rig.engine.is_paused(id));
    rig.engine.check_invariants().expect("consistent");
}

#[test]
fn a_client_that_takes_nothing_of_its_large_answers_is_closed() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let id = rig.client();
    for seq in 1..=30 {
        rig.says(id, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#));
    }
    while let Some(call) = calls(&mut rig).pop() {
        answer(&mut rig, call, 60_000);
    }
    rig.engine.on_sent(id, 0, rig.now);
    (0..300).for_each(|_| rig.later(10));
    let conn = rig.engine.clients.conns.get(id).expect("is told");
    assert!(matches!(conn.phase, Phase::Closing { .. }), "{:?}", conn.phase);
    assert!(!conn.holds.has(Hold::Unanswered));
}

#[test]
fn an_answer_that_cannot_be_used_is_told_with_the_reason_and_is_no_failure_of_the_instance() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let id = rig.client();
    for seq in 1..=9 {
        rig.says(id, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#));
        let call = rig.one_call();
        let error = CallError {
            message: "it is larger than 5 bytes".into(),
            ..CallError::of(CallFault::TooLarge, Started::Maybe, status::RESOURCE_EXHAUSTED)
        };
        rig.engine.on_outcome(Outcome { ticket: call.ticket, result: Err(error) }, rig.now);
        rig.engine.end_turn(rig.now);
        let told = rig.told(id);
        assert!(
            told.contains("BAD_SERVICE_REPLY") && told.contains("larger than 5 bytes"),
            "{told}"
        );
    }
    rig.later(10);
    assert_eq!(rig.engine.effects.signals, []);
}

#[test]
fn a_server_without_the_method_of_batches_costs_no_message() {
    let mut rig = Rig::new(snapshot(2), ShardSettings::default());
    let id = rig.client();
    rig.says(id, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    let call = rig.one_call();
    let wrong = call.instance;
    let error = CallError::of(CallFault::Status, Started::Maybe, status::UNIMPLEMENTED);
    rig.engine.on_outcome(Outcome { ticket: call.ticket, result: Err(error) }, rig.now);
    rig.engine.end_turn(rig.now);
    let again = rig.one_call();
    assert_ne!(again.instance, wrong);
    answer(&mut rig, again, 10);
    assert!(rig.told(id).contains("xxx"));
    rig.later(10);
    let signals = &rig.engine.effects.signals;
    assert_eq!((signals[0].instance, signals[0].failures), (wrong, 1));
}

#[test]
fn a_server_that_passes_unimplemented_on_may_have_run_the_messages() {
    let mut rig = Rig::new(snapshot(2), ShardSettings::default());
    let id = rig.client();
    rig.says(id, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    let call = rig.one_call();
    answer(&mut rig, call, 10);
    assert!(rig.told(id).contains("xxx"));
    rig.says(id, r#"{"msg_id":1001,"seq":2,"payload":1}"#);
    let call = rig.one_call();
    let error = CallError::of(CallFault::Status, Started::Maybe, status::UNIMPLEMENTED);
    rig.engine.on_outcome(Outcome { ticket: call.ticket, result: Err(error) }, rig.now);
    rig.engine.end_turn(rig.now);
    assert!(rig.told(id).contains("OUTCOME_UNKNOWN"));
    assert!(calls(&mut rig).is_empty());
}

//! One history for each case that a follower has to tell from another.

use std::time::Duration;

use super::super::Doing::{self, Closing, Idle, InFlight, Unsure, Unused};
use super::super::framing::Side;
use super::Tunnel;
use super::wire::*;
use crate::reclaim::{AnswerShape, Lesson};
use crate::tunnel::follow::Follower;

/// The sender, its bytes, and the state of the tunnel afterwards.
type Step = (Side, Vec<u8>, Doing);

fn client(bytes: Vec<u8>, doing: Doing) -> Step {
    (Side::Client, bytes, doing)
}

fn server(bytes: Vec<u8>, doing: Doing) -> Step {
    (Side::Server, bytes, doing)
}

/// Plays a history in whole records, and again byte by byte; each step a millisecond after the one before.
fn plays<const N: usize>(histories: [&[Step]; N]) {
    let steps = histories.concat();
    for piece in [usize::MAX, 1, 3] {
        let mut tunnel = Tunnel::new();
        for (at, (side, bytes, doing)) in steps.iter().enumerate() {
            tunnel.wait(Duration::from_millis(1));
            bytes.chunks(piece.min(bytes.len())).for_each(|bytes| tunnel.sent(*side, bytes));
            assert_eq!(tunnel.doing(), *doing, "after step {at} ({side:?}), in pieces of {piece}");
            assert_eq!(tunnel.follower.since(), tunnel.now);
        }
    }
}

/// The times of answers that a history shows, where each step comes a millisecond after the one before.
fn times<const N: usize>(histories: [&[Step]; N]) -> Vec<u128> {
    let mut tunnel = Tunnel::new();
    let mut times = Vec::new();
    for (side, bytes, _) in histories.concat() {
        tunnel.wait(Duration::from_millis(1));
        tunnel.sent(side, &bytes);
        times.extend(tunnel.follower.timer.take().map(|time| time.as_millis()));
    }
    times
}

/// A handshake of TLS 1.2.
fn old() -> Vec<Step> {
    vec![
        client(client_hello(&[]), InFlight),
        server(old_server_hello(&[], 2000), InFlight),
        client(handshake(70), InFlight),
        client(change_cipher_spec(), InFlight),
        client(handshake(40), InFlight),
        server(handshake(200), InFlight),
        server(change_cipher_spec(), InFlight),
        server(handshake(40), Unused),
    ]
}

/// The hellos of TLS 1.3, and the server's flight.
fn new_hellos() -> Vec<Step> {
    vec![
        client(client_hello(&[]), InFlight),
        server(server_hello(0x1301), InFlight),
        server(change_cipher_spec(), InFlight),
        server(data(32), InFlight),
        server(data(1500), InFlight),
        server(data(FINISHED), InFlight),
    ]
}

/// A handshake of TLS 1.3.
fn new() -> Vec<Step> {
    let mut steps = new_hellos();
    steps.extend([client(change_cipher_spec(), InFlight), client(data(FINISHED), Unused)]);
    steps
}

/// A handshake of TLS 1.3 with two tickets.
fn new_with_tickets() -> Vec<Step> {
    let mut steps = new();
    steps.extend([server(data(282), Unused), server(data(282), Unused)]);
    steps
}

#[test]
fn a_tunnel_without_a_byte_is_unused() {
    let tunnel = Tunnel::new();
    assert_eq!(tunnel.doing(), Unused);
    assert_eq!(tunnel.follower.since(), Duration::ZERO);
}

#[test]
fn after_a_full_handshake_of_tls_1_2_any_data_is_a_request() {
    plays([&old(), &[client(data(200), InFlight), server(data(400), Idle), client(data(FINISHED), InFlight)]]);
}

#[test]
fn after_a_resumed_handshake_of_tls_1_2_the_client_spoke_last_and_asked_nothing() {
    plays([&[
        client(client_hello(&[]), InFlight),
        server(old_server_hello(&[], 0), InFlight),
        server(change_cipher_spec(), InFlight),
        server(handshake(40), InFlight),
        client(change_cipher_spec(), InFlight),
        client(handshake(40), Unused),
        client(data(200), InFlight),
        server(data(400), Idle),
    ]]);
}

#[test]
fn the_time_of_an_answer_is_from_the_last_record_of_a_short_request_to_its_first() {
    let ask = [client(data(200), InFlight), client(data(90), InFlight)];
    let answer = [server(data(400), Idle), server(data(400), Idle)];
    let late = [server(data(282), InFlight), server(data(400), Idle)];
    let goodbye = [client(data(FINISHED), InFlight)];
    assert_eq!(times([&old(), &ask, &answer]), [0; 0], "it may go on");
    assert_eq!(times([&old(), &ask, &answer, &ask, &answer, &ask]), [1, 1]);
    assert_eq!(times([&new_with_tickets(), &ask, &answer, &goodbye]), [1], "tickets are none");
    assert_eq!(times([&new(), &ask, &late, &ask]), [2]);
    let upload = [client(data(10_000), InFlight), client(data(10_000), InFlight)];
    assert_eq!(times([&old(), &upload, &answer, &ask, &answer, &ask, &answer, &ask]), [1], "a commit comes after it");
    let long = [server(data(10_000), Unsure), server(data(10_000), Idle)];
    assert_eq!(times([&old(), &ask, &long, &ask, &answer, &ask]), [1]);
    assert_eq!(times([&old(), &[client(data(30), InFlight)], &answer, &ask]), [0; 0], "no request is so short");
    let mut turnless = old();
    turnless[1] = server(old_server_hello(&[alpn(&["h2"])], 100), InFlight);
    assert_eq!(times([&turnless, &ask, &answer, &ask]), [0; 0], "HTTP/2");
}

#[test]
fn a_client_certificate_in_tls_1_2_is_no_request() {
    plays([&[
        client(client_hello(&[]), InFlight),
        server(old_server_hello(&[], 1000), InFlight),
        client(handshake(900), InFlight),
        client(handshake(70), InFlight),
        client(handshake(264), InFlight),
        client(change_cipher_spec(), InFlight),
        client(handshake(40), InFlight),
        server(change_cipher_spec(), InFlight),
        server(handshake(40), Unused),
    ]]);
}

#[test]
fn a_request_by_false_start_is_in_flight_when_the_handshake_is_over() {
    plays([
        &old()[..5],
        &[
            client(data(200), InFlight),
            server(change_cipher_spec(), InFlight),
            server(handshake(40), InFlight),
            server(data(400), Idle),
        ],
    ]);
}

#[test]
fn renegotiation_is_never_idle() {
    plays([
        &old(),
        &[
            client(data(200), InFlight),
            server(data(400), Idle),
            server(handshake(28), Unsure),
            client(handshake(250), InFlight),
            server(handshake(3000), InFlight),
            client(data(200), InFlight),
            server(data(400), Unsure),
        ],
    ]);
    plays([&old(), &[server(handshake(28), Unsure)]]);
}

#[test]
fn in_tls_1_3_the_finished_looks_like_data_and_is_no_request() {
    plays([&new(), &[client(data(200), InFlight)]]);
    let without_compatibility_mode: Vec<Step> = new().into_iter().filter(|step| step.1[0] != 20).collect();
    plays([&without_compatibility_mode, &[client(data(200), InFlight)]]);
}

#[test]
fn a_finished_has_the_length_of_its_hash() {
    let hellos = |suite| [client(client_hello(&[]), InFlight), server(server_hello(suite), InFlight)];
    plays([&hellos(0x1302), &[client(data(69), Unused)]]);
    plays([&hellos(0x1303), &[client(data(53), Unused)]]);
    plays([&hellos(0x1305), &[client(data(45), Unused)]]);
    // Of a suite that nobody knows one cannot tell; that nothing was asked yet is sure nevertheless.
    plays([&hellos(0x13FF), &[client(data(53), Unsure), client(data(200), InFlight)]]);
}

#[test]
fn tickets_before_the_first_request_change_nothing() {
    plays([&new_with_tickets(), &[client(data(200), InFlight), server(data(299), Idle)]]);
}

#[test]
fn tickets_after_the_first_request_are_no_answer() {
    for tickets in 0..=4 {
        let tickets: Vec<Step> = (0..tickets).map(|_| server(data(282), InFlight)).collect();
        let answer: &[Step] = if tickets.is_empty() { &[server(data(282), InFlight)] } else { &[] };
        plays([&new(), &[client(data(200), InFlight)], &tickets, answer, &[server(data(299), Idle)]]);
    }
}

/// Of a server that sends no tickets, the first answer may be one record.
#[test]
fn a_presumed_ticket_after_a_request_may_be_its_answer() {
    let mut tunnel = Tunnel::new();
    let talk = [client(data(200), InFlight), server(data(282), InFlight)];
    for (side, bytes, _) in new().into_iter().chain(talk) {
        assert!(!tunnel.follower.observe().perhaps_answered);
        tunnel.sent(side, &bytes);
    }
    assert!(tunnel.follower.observe().perhaps_answered);
    tunnel.sent(Side::Client, &data(200));
    assert!(!tunnel.follower.observe().perhaps_answered);
}

#[test]
fn a_ticket_on_each_side_of_the_first_request_is_no_answer() {
    plays([
        &new(),
        &[
            server(data(282), Unused),
            client(data(200), InFlight),
            server(data(282), InFlight),
            client(data(500), InFlight),
            server(data(286), InFlight),
            server(data(299), Idle),
        ],
    ]);
}

/// A next request shows that what was taken for a ticket was the answer. The parts of one request do not.
#[test]
fn a_next_request_tells_that_the_server_sends_no_tickets() {
    for (next, lesson) in [(data(204), Some(Lesson::NoTickets)), (data(FULL), None)] {
        let mut tunnel = Tunnel::new();
        let talk = [client(data(200), InFlight), server(data(282), InFlight), client(next, InFlight)];
        for (side, bytes, _) in new().into_iter().chain(talk) {
            tunnel.sent(side, &bytes);
        }
        assert_eq!(tunnel.follower.take_lesson(), lesson);
    }
    let mut ticketless = Tunnel { follower: Follower::new(Duration::ZERO, true), ..Tunnel::new() };
    for (side, bytes, _) in new().into_iter().chain([client(data(200), InFlight), server(data(282), Idle)]) {
        ticketless.sent(side, &bytes);
    }
    assert_eq!(ticketless.doing(), Idle);
}

#[test]
fn tickets_before_a_request_and_several_alike_prove_themselves() {
    for talk in [
        vec![server(data(282), Unused)],
        vec![client(data(200), InFlight), server(data(282), InFlight), server(data(282), InFlight)],
    ] {
        let mut tunnel = Tunnel::new();
        for (side, bytes, _) in new().into_iter().chain(talk) {
            tunnel.sent(side, &bytes);
        }
        assert_eq!(tunnel.follower.take_lesson(), Some(Lesson::Tickets));
    }
}

/// Whatever records its body comes in.
#[test]
fn an_exchange_is_told_by_the_length_of_its_content_when_the_next_request_comes() {
    // The bytes that GCM adds.
    let content = |length: usize| data(length + 24);
    let mut tunnel = Tunnel::new();
    for (side, bytes, _) in old() {
        tunnel.sent(side, &bytes);
    }
    for body in [&[4096, 4096, 4096][..], &[12_288], &[4096, 8192]] {
        tunnel.sent(Side::Client, &content(700));
        tunnel.sent(Side::Server, &content(600));
        for length in body {
            tunnel.sent(Side::Server, &content(*length));
        }
        let exchange = AnswerShape { request: 700, answer: 600 + 12_288, head: Some(600) };
        assert_eq!(tunnel.follower.observe().exchange, Some(exchange));
        tunnel.sent(Side::Client, &content(10)[..3]);
        assert_eq!(tunnel.follower.observe().exchange, None, "a request begins");
        tunnel.sent(Side::Client, &content(10)[3..]);
        assert_eq!(tunnel.follower.take_lesson(), Some(Lesson::Answer(exchange)));
        tunnel.sent(Side::Server, &content(100));
    }
}

/// Then a record is an answer, however long.
#[test]
fn the_burst_of_tickets_ends_in_time() {
    let mut tunnel = Tunnel::new();
    let mut steps = new_with_tickets();
    steps.push(client(data(200), InFlight));
    for (side, bytes, _) in steps {
        tunnel.sent(side, &bytes);
    }
    tunnel.wait(Duration::from_millis(1001));
    tunnel.sent(Side::Server, &data(282));
    assert_eq!(tunnel.doing(), Idle);
}

#[test]
fn a_server_that_speaks_unasked_is_not_understood() {
    plays([&old(), &[server(data(100), Unsure), client(data(200), InFlight), server(data(300), Idle)]]);
    plays([&new_with_tickets(), &[server(data(700), Unsure)]]);
}

#[test]
fn early_data_is_a_request() {
    let early = [
        client(client_hello(&[early_data()]), InFlight),
        client(change_cipher_spec(), InFlight),
        client(data(200), InFlight),
        server(server_hello(0x1301), InFlight),
        server(data(36), InFlight),
        server(data(FINISHED), InFlight),
        client(data(END_OF_EARLY_DATA), InFlight),
        client(data(FINISHED), InFlight),
    ];
    plays([&early, &[server(data(282), InFlight), server(data(282), InFlight), server(data(400), Idle)]]);
}

#[test]
fn early_data_that_was_offered_and_not_sent_is_no_request() {
    plays([&[
        client(client_hello(&[early_data()]), InFlight),
        server(server_hello(0x1301), InFlight),
        server(data(36), InFlight),
        server(data(FINISHED), InFlight),
        client(data(END_OF_EARLY_DATA), InFlight),
        client(data(FINISHED), Unused),
        client(data(200), InFlight),
    ]]);
}

/// Whether early data was refused is encrypted, and what comes then could be more of it.
#[test]
fn refused_early_data_is_never_idle() {
    plays([&[
        client(client_hello(&[early_data()]), InFlight),
        client(data(200), InFlight),
        server(server_hello(0x1301), InFlight),
        server(data(36), InFlight),
        server(data(1000), InFlight),
        server(data(FINISHED), InFlight),
        client(data(FINISHED), InFlight),
        client(data(200), InFlight),
        server(data(282), Unsure),
        server(data(400), Unsure),
    ]]);
}

#[test]
fn a_hello_retry_request_does_not_make_it_tls_1_2() {
    let hellos = |extensions: &[Extension]| {
        [
            client(client_hello(extensions), InFlight),
            client(change_cipher_spec(), InFlight),
            server(hello_retry_request(), InFlight),
            server(change_cipher_spec(), InFlight),
            client(client_hello(&[]), InFlight),
            server(server_hello(0x1301), InFlight),
            server(data(900), InFlight),
        ]
    };
    plays([&hellos(&[]), &[client(data(FINISHED), Unused), client(data(200), InFlight)]]);
    // A request in early data is void, but the client means to repeat it.
    let mut retried = hellos(&[early_data()]).to_vec();
    retried.insert(2, client(data(200), InFlight));
    retried.insert(4, client(data(300), InFlight));
    plays([&retried, &[client(data(FINISHED), InFlight), server(data(282), InFlight), server(data(400), Idle)]]);
}

#[test]
fn a_client_certificate_in_tls_1_3_takes_three_records() {
    let certificates = [
        client(data(900), Unsure),
        client(data(CERTIFICATE_VERIFY), InFlight),
        client(data(FINISHED), Unused),
        server(data(282), Unused),
        client(data(200), InFlight),
        server(data(282), InFlight),
        server(data(299), Idle),
    ];
    plays([&new_hellos(), &certificates]);
}

#[test]
fn a_client_without_a_certificate_says_so_when_asked_for_one() {
    plays([
        &new_hellos(),
        &[client(data(NO_CERTIFICATE), InFlight), client(data(FINISHED), Unused), client(data(200), InFlight)],
    ]);
    let both = NO_CERTIFICATE + FINISHED - 17;
    plays([&new_hellos(), &[client(data(both), Unused), client(data(200), InFlight)]]);
}

/// One record that is no Finished: it may be all of the flight or its beginning, but no request was sent.
#[test]
fn a_flight_in_one_record_is_over_when_the_server_speaks() {
    plays([&new_hellos(), &[client(data(1200), Unsure), server(data(282), Unused), client(data(200), InFlight)]]);
    let request = [client(data(1200), Unsure), client(data(200), InFlight), server(data(282), InFlight)];
    plays([&new_hellos(), &request, &[server(data(299), Idle)]]);
}

#[test]
fn a_second_record_that_may_be_a_request_is_one() {
    let first = [client(data(1200), Unsure)];
    plays([&new_hellos(), &first, &[client(data(FINISHED), InFlight)]]);
    let like_a_verify = client(data(CERTIFICATE_VERIFY), InFlight);
    plays([&new_hellos(), &first, &[like_a_verify.clone(), client(data(200), InFlight), server(data(282), InFlight)]]);
    plays([&new_hellos(), &first, &[like_a_verify, server(data(282), InFlight), server(data(400), Idle)]]);
}

#[test]
fn a_goodbye_is_neither_request_nor_answer() {
    let goodbye = || data(CLOSE_NOTIFY);
    plays([&new(), &[client(goodbye(), Closing), server(goodbye(), Closing)]]);
    plays([&new(), &[server(goodbye(), Closing), client(data(200), InFlight)]]);
    let answered = [client(data(200), InFlight), server(data(282), InFlight), server(data(400), Idle)];
    plays([&new(), &answered, &[client(goodbye(), Closing)]]);
    plays([&new(), &answered, &[server(goodbye(), Closing), client(goodbye(), Closing)]]);
    plays([&old(), &[client(alert(), Closing)]]);
    plays([&old(), &[client(data(200), InFlight), server(data(400), Idle), server(alert(), Closing)]]);
}

#[test]
fn a_goodbye_that_something_follows_was_none() {
    let answered = [client(data(200), InFlight), server(data(282), InFlight), server(data(400), Idle)];
    plays([&new(), &answered, &[client(data(CLOSE_NOTIFY), Closing), client(data(CLOSE_NOTIFY), InFlight)]]);
    plays([&new(), &answered, &[server(data(CLOSE_NOTIFY), Closing), server(data(500), Idle)]]);
}

#[test]
fn a_goodbye_while_something_is_in_flight_does_not_free_the_tunnel() {
    let goodbye = || data(CLOSE_NOTIFY);
    plays([&new(), &[client(data(200), InFlight), client(goodbye(), InFlight), server(goodbye(), InFlight)]]);
    plays([&old(), &[client(data(200), InFlight), client(alert(), InFlight)]]);
    // Here it is no guess, and nothing can follow.
    plays([&old(), &[client(data(200), InFlight), server(alert(), Closing)]]);
}

#[test]
fn an_alert_ends_a_handshake() {
    plays([&[client(client_hello(&[]), InFlight), server(alert(), Closing)]]);
    plays([&old()[..2], &[client(alert(), Closing)]]);
    plays([&new_hellos(), &[client(data(CLOSE_NOTIFY), Closing)]]);
    // Unless it is a warning (RFC 6066, section 3).
    let warned = [client(client_hello(&[]), InFlight), server(alert(), Closing)];
    plays([&warned, &[server(server_hello(0x1301), InFlight), client(data(FINISHED), Unused)]]);
}

#[test]
fn a_key_update_is_at_most_unsure() {
    let update = || data(KEY_UPDATE);
    let answered = [client(data(200), InFlight), server(data(282), InFlight), server(data(400), Idle)];
    // In an answer that long a record is the last chunk.
    plays([&new(), &answered, &[server(update(), Idle), client(update(), Unsure), client(data(200), InFlight)]]);
    plays([&new(), &[server(update(), Unsure)]]);
    plays([&new(), &[client(update(), Unsure)]]);
    plays([&new(), &[client(data(200), InFlight), server(update(), InFlight), client(update(), InFlight)]]);
}

#[test]
fn a_client_that_may_be_asked_for_a_certificate_later_is_never_idle() {
    let mut steps = new();
    steps[0] = client(client_hello(&[post_handshake_auth()]), InFlight);
    plays([&steps, &[client(data(200), InFlight), server(data(282), InFlight), server(data(400), Unsure)]]);
}

#[test]
fn http_2_is_never_idle() {
    let both = [alpn(&["h2", "http/1.1"])];
    let talk = [client(data(200), InFlight), server(data(282), InFlight), server(data(400), Unsure)];
    let mut offered = new();
    offered[0] = client(client_hello(&both), InFlight);
    plays([&offered, &talk]);

    let mut chosen = old();
    chosen[0] = client(client_hello(&both), InFlight);
    chosen[1] = server(old_server_hello(&[alpn(&["h2"])], 100), InFlight);
    plays([&chosen, &[client(data(200), InFlight), server(data(400), Unsure)]]);
    chosen[1] = server(old_server_hello(&[alpn(&["http/1.1"])], 100), InFlight);
    plays([&chosen, &[client(data(200), InFlight), server(data(400), Idle)]]);

    offered[0] = client(client_hello(&[alpn(&["http/1.1", "h3"])]), InFlight);
    plays([&offered, &talk[..2], &[server(data(400), Idle)]]);
}

#[test]
fn a_hello_over_several_records_is_one_hello() {
    let message = client_hello_message(&[alpn(&["h2"])]);
    let records: Vec<u8> = message.chunks(100).flat_map(|bytes| record(22, bytes)).collect();
    let mut steps = new();
    steps[0] = client(records, InFlight);
    plays([&steps, &[client(data(200), InFlight), server(data(282), InFlight), server(data(400), Unsure)]]);
}

#[test]
fn a_stall_behind_a_full_record_is_unsure() {
    let body = [server(data(282), InFlight), server(data(350), Idle), server(data(FULL), Unsure)];
    plays([&new(), &[client(data(200), InFlight)], &body, &[server(data(FULL), Unsure), server(data(77), Idle)]]);
}

#[test]
fn a_stall_within_a_record_is_unsure() {
    let (first, rest) = (data(3000)[..1000].to_vec(), data(3000)[1000..].to_vec());
    let talk = [client(data(200), InFlight), server(data(350), Idle)];
    plays([&old(), &talk, &[server(first, Unsure), server(rest, Idle)]]);
    plays([&old(), &talk, &[server(vec![23, 3], Unsure)]]);
}

/// nginx without buffering: each read from behind is a record of its own.
#[test]
fn full_is_the_size_that_the_tunnel_repeats() {
    let bulk = [
        client(data(200), InFlight),
        server(data(350), Idle),
        server(data(8216), Idle),
        server(data(8216), Unsure),
        server(data(4120), Idle),
        server(data(8216), Unsure),
        server(data(900), Idle),
    ];
    plays([&old(), &bulk]);
    // The next answer is measured by the last one, until it repeats a size of its own.
    let next = [
        client(data(200), InFlight),
        server(data(350), Idle),
        server(data(8216), Unsure),
        client(data(200), InFlight),
        server(data(350), Idle),
        server(data(4120), Idle),
        server(data(4120), Unsure),
        server(data(800), Idle),
    ];
    plays([&old(), &bulk, &next]);
}

#[test]
fn answers_of_one_length_are_no_bulk() {
    let turn = [client(data(200), InFlight), server(data(299), Idle)];
    plays([&old(), &turn, &turn, &turn]);
}

#[test]
fn a_small_answer_to_an_upload_under_way_is_unsure() {
    plays([
        &old(),
        &[
            client(data(300), InFlight),
            server(data(49), Unsure),
            client(data(16_408), InFlight),
            server(data(120), Unsure),
            client(data(9000), InFlight),
            server(data(120), Idle),
        ],
    ]);
    let cut = data(9000)[..400].to_vec();
    plays([&old(), &[client(data(300), InFlight), client(cut, InFlight), server(data(120), InFlight)]]);
}

#[test]
fn a_client_that_does_not_wait_for_the_answer_is_never_idle_again() {
    let cut = || data(400)[..100].to_vec();
    let rest = || data(400)[100..].to_vec();
    let pipelined = [server(cut(), Unsure), client(data(200), InFlight), server(rest(), InFlight)];
    plays([&old(), &[client(data(200), InFlight)], &pipelined, &[server(data(400), Unsure)]]);
}

#[test]
fn plain_http_is_in_flight_or_unsure() {
    let request = b"GET /v2/ HTTP/1.1\r\nHost: r\r\n\r\n".to_vec();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec();
    plays([&[client(request.clone(), InFlight), server(answer, Unsure), client(request, InFlight)]]);
    plays([&[server(b"SSH-2.0-x\r\n".to_vec(), Unsure)]]);
    plays([&[server(b"SS".to_vec(), Unsure)]]);
}

#[test]
fn garbage_is_in_flight_or_unsure() {
    for garbage in [record(23, &[]), vec![23, 3, 3, 0x48, 1], vec![23, 2, 0, 0, 9], vec![99; 5], vec![24, 3, 3, 0, 20]]
    {
        plays([&new(), &[client(garbage.clone(), InFlight), server(data(400), Unsure)]]);
        plays([&old(), &[server(garbage, Unsure), client(data(200), InFlight), server(data(400), Unsure)]]);
    }
    plays([&[client(handshake(100), InFlight), server(handshake(100), Unsure)]]);
    plays([&[client(client_hello(&[]), InFlight), client(data(100), InFlight), server(data(100), Unsure)]]);
    plays([&[client(record(22, &[1, 1, 0, 0]), InFlight), client(vec![0; 9], InFlight), server(vec![0], Unsure)]]);
}

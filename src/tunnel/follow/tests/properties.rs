//! Properties of any history: of valid tunnels, of invalid ones, and for any split of their bytes.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::Doing;
use super::super::framing::Side;
use super::super::lengths::Lengths;
use super::Tunnel;
use super::wire::*;

/// Bytes that one side sends at once.
type Said = (Side, Vec<u8>);

fn client(bytes: Vec<u8>) -> Said {
    (Side::Client, bytes)
}

fn server(bytes: Vec<u8>) -> Said {
    (Side::Server, bytes)
}

/// How the client proves who it is, in TLS 1.3.
#[derive(Clone, Copy, Debug)]
enum Certificate {
    NotAsked,
    None,
    /// `Certificate`, `CertificateVerify`, `Finished`: a record each.
    InRecords,
    /// All in one record.
    AtOnce,
}

/// A handshake, up to the client's right to ask; and the tickets to come after it.
#[derive(Clone, Debug)]
struct Opening {
    said: Vec<Said>,
    tickets: Vec<usize>,
    /// Whether a request was sent in early data.
    asked: bool,
}

fn old_opening() -> impl Strategy<Value = Opening> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(resumed, http2, certificate)| {
        let chosen: &[Extension] = if http2 { &[alpn(&["h2"])] } else { &[] };
        let finished = || [change_cipher_spec(), handshake(40)].concat();
        let mut said = vec![client(client_hello(&[])), server(old_server_hello(chosen, 300))];
        if resumed {
            said.extend([server(finished()), client(finished())]);
        } else {
            let own =
                if certificate { [handshake(900), handshake(70), handshake(264)].concat() } else { handshake(70) };
            said.extend([client(own), client(finished()), server(handshake(190)), server(finished())]);
        }
        Opening { said, tickets: Vec::new(), asked: false }
    })
}

fn new_opening() -> impl Strategy<Value = Opening> {
    let certificate =
        select(vec![Certificate::NotAsked, Certificate::None, Certificate::InRecords, Certificate::AtOnce]);
    let tickets = (0..=4_usize, select(vec![60_usize, 234, 282, 299, 1100])).prop_map(|(n, length)| vec![length; n]);
    (certificate, tickets, any::<bool>(), any::<bool>(), any::<bool>(), vec(23..FULL, 1..3)).prop_map(
        |(certificate, tickets, http2, retry, early, requests)| {
            let mut offer = Vec::new();
            offer.extend(http2.then(|| alpn(&["http/1.1", "h2"])));
            offer.extend(early.then(early_data));
            let mut said = vec![client(client_hello(&offer))];
            if early {
                said.extend(requests.into_iter().map(|length| client(data(length))));
            }
            if retry {
                said.extend([server(hello_retry_request()), client(change_cipher_spec()), client(client_hello(&[]))]);
            }
            said.extend([server(server_hello(0x1301)), server(data(40)), server(data(900)), server(data(FINISHED))]);
            if early && !retry {
                said.push(client(data(END_OF_EARLY_DATA)));
            }
            let proof: &[usize] = match certificate {
                _ if early && !retry => &[FINISHED],
                Certificate::NotAsked => &[FINISHED],
                Certificate::None => &[NO_CERTIFICATE, FINISHED],
                Certificate::InRecords => &[900, CERTIFICATE_VERIFY, FINISHED],
                Certificate::AtOnce => &[1217],
            };
            said.extend(proof.iter().map(|length| client(data(*length))));
            Opening { said, tickets, asked: early }
        },
    )
}

/// A request and its answer, as lengths of records; the first `early_tickets` of the tickets left come before it, and
/// the others `after` so many of its records.
#[derive(Clone, Debug)]
struct Exchange {
    request: Vec<usize>,
    answer: Vec<usize>,
    early_tickets: usize,
    after: usize,
}

fn exchange() -> impl Strategy<Value = Exchange> {
    // The first record of a request is longer than the small records of the protocol.
    let first = prop_oneof![80..3000_usize, select(vec![282_usize, 299, FULL])];
    let more = vec![CLOSE_NOTIFY, 20, KEY_UPDATE, FINISHED, CERTIFICATE_VERIFY, 282, 8216, FULL];
    let answer = vec(prop_oneof![select(vec![FULL, 8216]), 80..FULL], 0..6);
    (first, vec(select(more), 0..3), 310..3000_usize, answer, 0..3_usize, 0..4_usize).prop_map(
        |(first, mut rest, head, body, early_tickets, after)| {
            // The one request that is taken for something else: of the length of a signature, followed by a record of
            // the length of a Finished, both on the heels of a client certificate that came in one record.
            if Lengths::of(0x1301).is_certificate_verify(u16::try_from(first).unwrap_or(0)) {
                rest.retain(|length| *length != FINISHED);
            }
            let (request, answer) = ([vec![first], rest].concat(), [vec![head], body].concat());
            Exchange { request, answer, early_tickets, after }
        },
    )
}

fn opening() -> impl Strategy<Value = Opening> {
    prop_oneof![old_opening(), new_opening()]
}

/// Plays a tunnel; `check` learns after each step whether a request without answer is on its way by construction.
fn play(opening: &Opening, exchanges: &[Exchange], mut check: impl FnMut(&Tunnel, Side, bool)) {
    let mut tunnel = Tunnel::new();
    let mut say = |side, bytes: &[u8], unanswered| {
        tunnel.wait(Duration::from_micros(700));
        tunnel.sent(side, bytes);
        check(&tunnel, side, unanswered);
    };
    for (side, bytes) in &opening.said {
        let asked = opening.asked && bytes[0] == 23;
        say(*side, bytes, asked);
    }
    let mut tickets = opening.tickets.clone();
    let mut asked = opening.asked;
    for exchange in exchanges {
        let early = tickets.len().min(exchange.early_tickets);
        tickets.drain(..early).for_each(|length| say(Side::Server, &data(length), asked));
        for (at, length) in exchange.request.iter().enumerate() {
            asked = true;
            say(Side::Client, &data(*length), asked);
            if at == exchange.after {
                tickets.drain(..).for_each(|length| say(Side::Server, &data(length), true));
            }
        }
        tickets.drain(..).for_each(|length| say(Side::Server, &data(length), true));
        for length in &exchange.answer {
            let bytes = data(*length);
            say(Side::Server, &bytes[..4], asked);
            say(Side::Server, &bytes[4..length / 2], asked);
            asked = false;
            say(Side::Server, &bytes[length / 2..], asked);
        }
    }
}

/// Everything that can be seen of a follower that is fed these bytes, after each.
fn seen(said: &[Said], cuts: &[usize]) -> Vec<(Doing, Duration)> {
    let mut tunnel = Tunnel::new();
    let mut cuts = cuts.iter().cycle();
    let mut states = Vec::new();
    for (side, bytes) in said {
        tunnel.wait(Duration::from_millis(3));
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().map_or(rest.len(), |cut| rest.len().min(*cut)));
            tunnel.sent(*side, piece);
            rest = after;
        }
        states.push((tunnel.doing(), tunnel.follower.since()));
    }
    states
}

/// Something that either side might say, with sense or without.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (20..24_u8, 1..2000_usize).prop_map(|(kind, length)| record(kind, &vec![0; length])),
        4 => select(vec![CLOSE_NOTIFY, KEY_UPDATE, END_OF_EARLY_DATA, NO_CERTIFICATE, FINISHED]).prop_map(data),
        4 => select(vec![282, 299, 8216, FULL]).prop_map(data),
        1 => Just(client_hello(&[early_data(), alpn(&["h2"])])),
        1 => Just(server_hello(0x1301)),
        1 => Just(hello_retry_request()),
        1 => Just(old_server_hello(&[], 50)),
        1 => Just(change_cipher_spec()),
        1 => Just(alert()),
        1 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 0..300).prop_map(|bytes| record(22, &bytes)),
    ]
}

fn side() -> impl Strategy<Value = Side> {
    select(vec![Side::Client, Side::Server])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_request_without_answer_is_never_idle_nor_unused(opening in opening(), exchanges in vec(exchange(), 1..5)) {
        play(&opening, &exchanges, |tunnel, _, unanswered| {
            assert!(!unanswered || !matches!(tunnel.doing(), Doing::Idle | Doing::Unused), "{:?}", tunnel.doing());
        });
    }

    #[test]
    fn while_the_client_spoke_last_a_request_is_in_flight(opening in opening(), exchanges in vec(exchange(), 1..5)) {
        play(&opening, &exchanges, |tunnel, side, unanswered| {
            assert!(!unanswered || side == Side::Server || tunnel.doing() == Doing::InFlight, "{:?}", tunnel.doing());
        });
    }

    #[test]
    fn the_split_of_bytes_does_not_matter(
        opening in opening(),
        talk in vec((side(), anything()), 0..12),
        cuts in vec(prop_oneof![1..4_usize, 1..2000_usize], 1..20),
    ) {
        let said = [opening.said, talk].concat();
        prop_assert_eq!(seen(&said, &[]), seen(&said, &cuts));
    }

    #[test]
    fn nonsense_is_followed_without_harm(
        talk in vec((side(), anything()), 0..20),
        cuts in vec(1..2000_usize, 1..20),
    ) {
        prop_assert_eq!(seen(&talk, &[]), seen(&talk, &cuts));
    }

    /// One byte of a sound handshake is changed.
    #[test]
    fn damage_is_followed_without_harm(opening in opening(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut said = opening.said;
        let step = at.index(said.len());
        let place = at.index(said[step].1.len());
        said[step].1[place] = byte;
        said.push(client(data(500)));
        let states = seen(&said, &[]);
        prop_assert!(!matches!(states.last(), Some((Doing::Idle, _))));
    }
}

/// Harbor's nginx sends what it reads from behind: its short records come in the middle, at every hiccup.
#[test]
fn a_short_end_is_believed_only_where_short_records_are_rare() {
    for (body, believed) in [
        (vec![FULL; 3], false),
        (vec![FULL; 40], true),
        ([vec![FULL; 40], vec![3000], vec![FULL; 40]].concat(), false),
        ([vec![FULL; 300], vec![3000], vec![FULL; 300]].concat(), true),
        (vec![4120; 300], false),
        ([16_408, 16_408, 7256].repeat(20), false),
    ] {
        let mut tunnel = Tunnel::new();
        for (side, bytes) in [
            client(client_hello(&[])),
            server(old_server_hello(&[], 300)),
            client([handshake(70), change_cipher_spec(), handshake(40)].concat()),
            server([handshake(190), change_cipher_spec(), handshake(40)].concat()),
            client(data(200)),
            server(data(600)),
        ] {
            tunnel.sent(side, &bytes);
        }
        for length in &body {
            tunnel.sent(Side::Server, &data(*length));
        }
        tunnel.sent(Side::Server, &data(900));
        assert_eq!(tunnel.follower.observe().ends_short, believed, "{} records", body.len());
    }
}

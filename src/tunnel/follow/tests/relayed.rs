//! Answers that pass within the kernel, and what a follower makes of them on the way.

use std::cell::Cell;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;

use super::super::framing::Side;
use super::super::{Follower, Observation};
use super::wire::*;
use crate::splice::{self, HEADER, Sight};
use crate::tcp::tests::pair;
use crate::tunnel::relay::{Flow, interest, ready};
use roadstead_test_support::Random;

const SESSIONS: u64 = 40;
const ANSWERS: usize = 8;

/// The server's bytes that pass, shown to one follower.
struct Passing {
    follower: Follower,
    now: Duration,
    seen: usize,
    unseen: usize,
    alike: usize,
}

impl Sight for Passing {
    fn passing(&mut self, bytes: &[u8]) {
        self.follower.sent(Side::Server, bytes, self.now);
        self.seen += bytes.len();
    }

    fn unseen(&self) -> usize {
        self.follower.unseen(Side::Server)
    }

    fn passing_unseen(&mut self, bytes: usize) {
        self.follower.passing_unseen(Side::Server, bytes, self.now);
        self.seen += bytes;
        self.unseen += bytes;
    }

    fn stride(&self) -> Option<usize> {
        self.follower.stride(Side::Server)
    }

    fn passing_alike(&mut self, records: usize, next: [u8; HEADER]) -> bool {
        let bytes = self.stride().unwrap() * records + HEADER;
        let can_be = self.follower.passing_alike(Side::Server, records, next, self.now);
        if can_be {
            self.seen += bytes;
            self.alike += records;
        }
        can_be
    }
}

/// All that a follower says.
fn said(follower: &Follower) -> (Observation, u32, bool, Duration) {
    (follower.observe(), follower.answered(), follower.is_inside_servers_record(), follower.since())
}

/// A record of this length that looks like noise.
fn noise(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = data(length);
    for chunk in bytes[HEADER..].chunks_mut(8) {
        chunk.copy_from_slice(&random.below(u64::MAX).to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// Bulk as registries send it: records of one length, some with others among them or at their end.
fn answer(random: &mut Random) -> Vec<u8> {
    let (of_one_length, count) =
        [(FULL, 40), (4113, 160), (1200, 400), (FULL, 60)][usize::try_from(random.below(4)).unwrap()];
    let others = [0, 0, 3, 40][usize::try_from(random.below(4)).unwrap()];
    let mut bytes = noise(random, 300);
    for _ in 0..count {
        let is_other = random.below(count) < others;
        let length = if is_other { 1 + usize::try_from(random.below(FULL as u64)).unwrap() } else { of_one_length };
        bytes.extend(noise(random, length));
    }
    if random.below(2) == 0 {
        bytes.extend(noise(random, 777));
    }
    bytes
}

/// After every step a follower that saw bulk pass within the kernel says the same as one that was shown copies of all bytes.
#[tokio::test]
async fn bulk_within_the_kernel_is_seen_as_if_it_was_copied() {
    splice::allow(4096);
    let (mut unseen, mut alike) = (0, 0);
    for seed in 0..SESSIONS {
        let passing = session(&mut Random::new(seed)).await;
        unseen += passing.unseen;
        alike += passing.alike;
    }
    assert!(unseen > 10_000_000 && alike > 10_000, "{unseen} bytes and {alike} records passed unseen");
}

async fn session(random: &mut Random) -> Passing {
    let ((mut origin, source), (sink, mut client)) = (pair().await, pair().await);
    let mut copied = Follower::new(Duration::ZERO, false);
    copied.sent(Side::Client, &client_hello(&[]), Duration::ZERO);
    copied.sent(Side::Server, &[server_hello(0x1301), change_cipher_spec(), data(2000)].concat(), Duration::ZERO);
    copied.sent(Side::Client, &[change_cipher_spec(), data(FINISHED)].concat(), Duration::ZERO);
    let mut passing = Passing { follower: copied.clone(), now: Duration::ZERO, seen: 0, unseen: 0, alike: 0 };
    let mut flow = Flow::default();
    for _ in 0..ANSWERS {
        let answer = answer(random);
        let request = data(400);
        copied.sent(Side::Client, &request, passing.now);
        passing.follower.sent(Side::Client, &request, passing.now);
        flow.turn();
        passing.seen = 0;
        let arrived = Cell::new(0);
        let (mut writes, mut reads) = (Random::new(random.below(1000)), Random::new(random.below(1000)));
        let sends = async {
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(1 + usize::try_from(writes.below(400_000)).unwrap()));
                origin.write_all(now).await.unwrap();
                rest = later;
                yield_now().await;
            }
        };
        let receives = async {
            let mut body = vec![0; answer.len()];
            while arrived.get() < answer.len() {
                let most = 1 + usize::try_from(reads.below(300_000)).unwrap();
                let end = answer.len().min(arrived.get() + most);
                arrived.set(arrived.get() + client.read(&mut body[arrived.get()..end]).await.unwrap());
                yield_now().await;
            }
            assert!(body == answer, "other bytes arrived");
        };
        let carries = async {
            while passing.seen < answer.len() || flow.holds_bytes() {
                tokio::select! {
                    _ = ready(&source, interest(&flow, &Flow::default())) => {}
                    _ = ready(&sink, interest(&Flow::default(), &flow)), if flow.holds_bytes() => {}
                }
                passing.now += Duration::from_millis(1);
                let before = passing.seen;
                flow.advance(&source, &sink, &mut passing).unwrap();
                copied.sent(Side::Server, &answer[before..passing.seen], passing.now);
                assert_eq!(said(&passing.follower), said(&copied), "after {} of {} bytes", passing.seen, answer.len());
            }
        };
        tokio::join!(sends, receives, carries);
        assert_eq!(passing.follower.take_lesson(), copied.take_lesson());
    }
    passing
}

//! A name server that knows some names, and gives their addresses in another order each time.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, JoinHandle};

/// A running name server; it ends when dropped.
pub(super) struct RotatingNames {
    handle: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl RotatingNames {
    /// Answers the questions that come to this socket.
    pub(super) fn serve(socket: UdpSocket, names: Vec<(String, Vec<Ipv4Addr>)>) -> RotatingNames {
        let handle = socket.try_clone().expect("a second handle of a socket");
        let thread = thread::spawn(move || {
            let mut turns = 0;
            let mut question = [0; 512];
            // An empty question is the end.
            while let Ok((length, asker)) = socket.recv_from(&mut question)
                && length > 0
            {
                if let Some(answer) = answer(&question[..length], &names, turns) {
                    let _ = socket.send_to(&answer, asker);
                }
                turns += 1;
            }
        });
        RotatingNames { handle, thread: Some(thread) }
    }
}

impl Drop for RotatingNames {
    fn drop(&mut self) {
        let ended = self.handle.local_addr().and_then(|address| self.handle.send_to(&[], address));
        if let (Ok(_), Some(thread)) = (ended, self.thread.take()) {
            thread.join().expect("the name server does not panic");
        }
    }
}

/// The answer to a question for one name: its IPv4 addresses, turned so often; no other records; or that there is no such name.
fn answer(question: &[u8], names: &[(String, Vec<Ipv4Addr>)], turns: usize) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const KIND_A: [u8; 4] = [0, 1, 0, 1];
    let (mut name, mut at) = (String::new(), HEADER);
    while let length @ 1.. = usize::from(*question.get(at)?) {
        name += &String::from_utf8_lossy(question.get(at + 1..=at + length)?);
        name.push('.');
        at += 1 + length;
    }
    let kind = question.get(at + 1..at + 5)?;
    let known = names.iter().find(|(known, _)| name.trim_end_matches('.').eq_ignore_ascii_case(known));
    let mut addresses = known.map(|(_, addresses)| addresses.clone()).filter(|_| kind == KIND_A).unwrap_or_default();
    if !addresses.is_empty() {
        let by = turns % addresses.len();
        addresses.rotate_left(by);
    }
    let count = u8::try_from(addresses.len()).ok()?;
    let no_such_name = if known.is_some() { 0 } else { 3 };
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | no_such_name, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(&question[HEADER..at + 5]);
    for address in addresses {
        answer.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

//! Answers after which a client asked again, by length: the next one that is as long has ended, too.
//!
//! Pullers ask for ranges of one size, whose answers are equally long but for the head. Requests of another length do not
//! count: a whole blob passes the length of a range in its middle. Nor do answers of one record count for those of several: the
//! head of a range is as long as the answer with one byte.
//!
//! Answers after which nothing came for long tell the same, though less: a registry may stall at one place each time.

/// How much two requests, or two answers, of one kind differ in their heads: digits of ranges, mostly.
const HEADS_DIFFER: u32 = 24;
/// Answers that must have ended so before one more is believed to.
const MIN_ENDED: u32 = 2;
/// At most one in so many may have gone on at this length.
const GONE_ON: u32 = 1000;
/// Kinds of answers that are remembered; the one that was longest not seen makes room.
const MAX_KINDS: usize = 64;

/// A request and its answer, by the length of their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerShape {
    pub request: u32,
    /// The answer, with its head.
    pub answer: u32,
    /// The first record of the answer, if it has several.
    pub head: Option<u32>,
}

/// How the answers of a length end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// Nothing came after them for long.
    Silent,
    /// The client asked again after them.
    Asked,
}

/// The answers of one registry.
#[derive(Debug, Default)]
pub(super) struct Answers {
    kinds: Vec<Kind>,
    /// Counts what is noted: the age of a kind.
    notes: u64,
}

#[derive(Debug)]
struct Kind {
    shape: AnswerShape,
    ended: u32,
    silent: u32,
    went_on: u32,
    last_noted: u64,
}

impl Answers {
    /// The client asked again: the answer had ended, and had not ended with its first record if it has more.
    pub fn ended(&mut self, exchange: AnswerShape) {
        if let Some(head) = exchange.head {
            self.went_on(AnswerShape { answer: head, head: None, ..exchange });
        }
        let kind = self.kind(exchange);
        kind.ended = kind.ended.saturating_add(1);
    }

    /// After this answer nothing came for long.
    pub fn was_silent(&mut self, exchange: AnswerShape) {
        let kind = self.kind(exchange);
        kind.silent = kind.silent.saturating_add(1);
    }

    /// An answer went on that had come so far.
    pub fn went_on(&mut self, exchange: AnswerShape) {
        let kind = self.kind(exchange);
        kind.went_on = kind.went_on.saturating_add(1);
    }

    /// How answers of this length end, if that is known. Of several kinds that are alike the least sure one tells.
    pub fn ended_like(&self, exchange: AnswerShape) -> Option<Ended> {
        let alike = self.kinds.iter().filter(|kind| kind.is_like(exchange));
        alike.map(Kind::ended).min().flatten()
    }

    fn kind(&mut self, exchange: AnswerShape) -> &mut Kind {
        self.notes += 1;
        let at = self.kinds.iter().position(|kind| kind.is_like(exchange)).unwrap_or_else(|| {
            let new = Kind { shape: exchange, ended: 0, silent: 0, went_on: 0, last_noted: 0 };
            if self.kinds.len() < MAX_KINDS {
                self.kinds.push(new);
                return self.kinds.len() - 1;
            }
            let oldest = self.kinds.iter().enumerate().min_by_key(|(_, kind)| kind.last_noted);
            let at = oldest.map_or(0, |(at, _)| at);
            self.kinds[at] = new;
            at
        });
        let kind = &mut self.kinds[at];
        kind.last_noted = self.notes;
        kind
    }
}

impl Kind {
    fn ended(&self) -> Option<Ended> {
        match self {
            _ if self.went_on.saturating_mul(GONE_ON) > self.ended => None,
            _ if self.ended >= MIN_ENDED => Some(Ended::Asked),
            _ if self.ended + self.silent >= MIN_ENDED => Some(Ended::Silent),
            _ => None,
        }
    }

    fn is_like(&self, AnswerShape { request, answer, head }: AnswerShape) -> bool {
        let Kind { shape, .. } = self;
        let is_near = |one: u32, other| one.abs_diff(other) <= HEADS_DIFFER;
        shape.head.is_some() == head.is_some() && is_near(shape.request, request) && is_near(shape.answer, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(request: u32, answer: u32) -> AnswerShape {
        AnswerShape { request, answer, head: Some(500) }
    }

    fn known(all: &[AnswerShape]) -> Answers {
        let mut answers = Answers::default();
        for exchange in all {
            answers.ended(*exchange);
        }
        answers
    }

    #[test]
    fn an_answer_is_known_by_two_that_ended_like_it() {
        let piece = exchange(700, 4_194_804);
        assert_eq!(known(&[piece]).ended_like(piece), None);
        let answers = known(&[piece, exchange(712, 4_194_812)]);
        assert_eq!(answers.ended_like(exchange(690, 4_194_790)), Some(Ended::Asked), "digits differ");
        for other in [exchange(700, 4_190_708), exchange(700, 500), exchange(660, 4_194_804), exchange(700, 4_194_829)]
        {
            assert_eq!(answers.ended_like(other), None, "{other:?}");
        }
    }

    #[test]
    fn silent_answers_are_believed_less_and_until_one_goes_on() {
        let piece = exchange(700, 4_194_804);
        let mut answers = Answers::default();
        answers.was_silent(piece);
        assert_eq!(answers.ended_like(piece), None);
        answers.was_silent(piece);
        assert_eq!(answers.ended_like(piece), Some(Ended::Silent));
        let mut asked = known(&[piece, piece]);
        asked.was_silent(piece);
        assert_eq!(asked.ended_like(piece), Some(Ended::Asked));
        answers.went_on(piece);
        (0..100).for_each(|_| answers.was_silent(piece));
        assert_eq!(answers.ended_like(piece), None);
    }

    /// HEAD requests end with the head, and GETs of that length go on behind it: the head tells nothing.
    #[test]
    fn a_head_that_may_be_all_or_not_is_never_believed() {
        let head_alone = AnswerShape { head: None, ..exchange(700, 500) };
        let mut answers = known(&[head_alone, head_alone]);
        assert_eq!(answers.ended_like(head_alone), Some(Ended::Asked));
        answers.ended(exchange(701, 4_194_804));
        assert_eq!(answers.ended_like(head_alone), None);
    }

    /// The first byte of a blob, behind a head of its own, is hardly longer than the head of any range of it.
    #[test]
    fn the_head_of_a_range_tells_nothing_of_a_short_answer() {
        let (first_byte, piece) = (exchange(690, 501), exchange(700, 4_194_804));
        let answers = known(&[piece, piece, first_byte, first_byte]);
        assert!(answers.ended_like(first_byte).is_some() && answers.ended_like(piece).is_some());
        assert_eq!(answers.ended_like(AnswerShape { answer: 500, head: None, ..piece }), None);
    }

    #[test]
    fn an_answer_that_went_on_once_is_believed_after_a_thousand_that_ended() {
        let piece = exchange(700, 4_194_804);
        let mut answers = known(&[piece; 10]);
        answers.went_on(piece);
        assert_eq!(answers.ended_like(piece), None);
        (0..990).for_each(|_| answers.ended(piece));
        assert_eq!(answers.ended_like(piece), Some(Ended::Asked));
    }

    #[test]
    fn what_was_longest_not_seen_makes_room() {
        let mut answers = Answers::default();
        let of = |number: u32| AnswerShape { head: None, ..exchange(700, 10_000 * (number + 1)) };
        for number in 0..200 {
            answers.ended(of(number));
            answers.ended(of(number));
            answers.ended(of(0));
        }
        assert_eq!(answers.kinds.len(), MAX_KINDS);
        assert!([0, 199].iter().all(|known| answers.ended_like(of(*known)).is_some()));
        assert_eq!(answers.ended_like(of(1)), None);
    }
}

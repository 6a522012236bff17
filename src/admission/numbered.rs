//! Maps by numbers that this process gives out: places, slots, classes. Nobody else chooses them, so no defence against chosen
//! collisions is needed, and two multiplications spread them. Maps by texts of clients have a random seed.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(super) use foldhash::fast::RandomState as TextState;

pub(super) type TextMap<K, V> = HashMap<K, V, TextState>;
pub(super) type NumberMap<K, V> = HashMap<K, V, NumberState>;
pub(super) type NumberSet<K> = HashSet<K, NumberState>;
pub(super) type NumberState = BuildHasherDefault<NumberHasher>;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    /// The end of `SplitMix64`: each bit of the number moves high and low bits of the hash.
    fn write_u64(&mut self, number: u64) {
        let mixed = self.0.rotate_left(5) ^ number;
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    /// Numbers in a row, and those that differ high up only, fall into all parts of a table, whichever bits choose.
    #[test]
    fn numbers_are_spread() {
        const NUMBERS: u64 = 4096;
        for step in [1, 1000, 1 << 20, 1 << 40, 1 << 50] {
            for bits in [0, 57] {
                let mut parts = [0; 128];
                for number in 0..NUMBERS {
                    let hash = NumberState::default().hash_one(number * step);
                    parts[usize::try_from((hash >> bits) & 127).unwrap()] += 1;
                }
                let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
                assert!(*least >= 8 && *most <= 96, "step {step}, bits from {bits}: {least} to {most} of 32");
            }
        }
    }
}

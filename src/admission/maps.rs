//! Maps of the core. This process gives numbers out itself (places, slots, classes): a seed that is known does no harm. Clients
//! choose texts: theirs is random.

use std::collections::{HashMap, HashSet};

pub(super) use foldhash::fast::{FixedState as NumberState, RandomState as TextState};

pub(super) type TextMap<K, V> = HashMap<K, V, TextState>;
pub(super) type NumberMap<K, V> = HashMap<K, V, NumberState>;
pub(super) type NumberSet<K> = HashSet<K, NumberState>;

//! The values of settings in words, for messages about changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use humantime::format_duration;
use ipnet::IpNet;

use super::fraction::Fraction;
use super::share::Share;
use crate::target::{Host, HostPattern, Origin};

/// Every setting that has a value, by its key.
pub type ShownSettings = BTreeMap<String, String>;

/// The lines of the keys that a file has. Two configs are the same wherever their keys stand.
#[derive(Clone, Debug, Default)]
pub struct KeyLines(pub BTreeMap<String, usize>);

impl PartialEq for KeyLines {
    fn eq(&self, _: &KeyLines) -> bool {
        true
    }
}

impl Eq for KeyLines {}

/// A value in words.
pub(crate) trait Shown {
    /// `None` for a value that is not there.
    fn shown(&self) -> Option<String>;
}

macro_rules! shown {
    ($($($kind:ty),+ => $shown:expr;)+) => {
        $($(impl $crate::config::shown::Shown for $kind {
            fn shown(&self) -> Option<String> {
                let shown: fn(&$kind) -> String = $shown;
                Some(shown(self))
            }
        })+)+
    };
}

pub(super) use shown;

shown! {
    bool, u32, usize, String, SocketAddr, IpNet, Fraction, Share, Host, HostPattern, Origin => ToString::to_string;
    Duration => |duration| format_duration(*duration).to_string();
    &'static str => |text| (*text).to_owned();
    NonZeroU64 => |rate| format!("{rate} B/s");
    PathBuf => |path| path.display().to_string();
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Option<String> {
        self.as_ref().and_then(Shown::shown)
    }
}

/// One that is empty was not given.
impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> Option<String> {
        let shown: Vec<String> = self.iter().filter_map(Shown::shown).collect();
        (!shown.is_empty()).then(|| shown.join(", "))
    }
}

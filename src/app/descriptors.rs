//! How the descriptors of this process are shared out: each client takes one, each slot one, and some are for pipes and
//! the rest.

use crate::config::{Config, Mode};
use crate::{kernel, splice};

/// Descriptors for the runtime, listeners, the log, name look-ups and the admin listener.
const RESERVE: usize = 40;
/// The part of the limit that clients get however many slots there are: dials wait for a descriptor, if need be.
const LEAST_PART_OF_CLIENTS: usize = 4;

/// Shares out those of this process; how many clients get one.
pub(super) fn share_out(config: &Config) -> usize {
    let limit = kernel::max_descriptors();
    splice::allow(limit);
    for_clients(config, limit)
}

fn for_clients(config: &Config, limit: usize) -> usize {
    let slots: usize = config.registries.iter().map(|registry| registry.slots).sum();
    let reserve = RESERVE + splice::descriptors(limit);
    let clients = limit.saturating_sub(slots.saturating_add(reserve));
    // Where nothing is held, each client may have a connection to the registry.
    let is_observed = config.registries.iter().any(|registry| registry.mode == Mode::Observe);
    let most = if is_observed { limit.saturating_sub(reserve) / 2 } else { limit };
    clients.min(most).max(limit / LEAST_PART_OF_CLIENTS).max(1)
}

/// The warning for the operator, if the limit on open files bounds the clients. A little less than `max_clients` needs no
/// warning: the default of both is often 20,000.
pub fn warning(config: &Config) -> Option<String> {
    warning_at(config, kernel::max_descriptors())
}

pub fn warning_at(config: &Config, limit: usize) -> Option<String> {
    let (clients, max_clients) = (for_clients(config, limit), config.listen.max_clients);
    (clients < max_clients / 10 * 9).then(|| {
        format!(
            "listen.max_clients = {max_clients}: the limit on open files ({limit}) allows {clients} clients at once beside the \
             connections to registries, more wait unaccepted; raise the limit (ulimit -n, LimitNOFILE=), or lower max_clients"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistryConfig;

    fn observe() -> RegistryConfig {
        let registry = "[registries.a]\nhosts = ['a.test']\ncap = 10\nshare = 1\nmode = 'observe'\n";
        Config::parse(registry).unwrap().registries.remove(0)
    }

    #[test]
    fn clients_leave_descriptors_for_the_slots_and_get_some_in_any_case() {
        let config = |slots: usize, max_clients: usize| {
            let listen = format!("[listen]\nmax_clients = {max_clients}\n");
            let registry = format!("[registries.a]\nhosts = ['a.test']\ncap = {slots}\nshare = 1\n");
            Config::parse(&(listen + &registry)).unwrap()
        };
        for (slots, limit, clients) in [(10, 100, 50), (10, 1023, 973), (10, 1024, 910), (500, 100, 25), (1, 1, 1)] {
            assert_eq!(for_clients(&config(slots, 20_000), limit), clients, "{slots} slots, {limit} descriptors");
        }
        let told = warning_at(&config(10, 20_000), 64).unwrap();
        assert!(told.contains("20000") && told.contains("(64)") && told.contains("allows 16 clients"), "{told}");
        let observed = |limit| for_clients(&Config { registries: vec![observe()], ..config(10, 20_000) }, limit);
        assert_eq!([observed(100), observed(1024), observed(20)], [30, 460, 5], "two for each client");
        let told = warning_at(&Config { registries: vec![observe()], ..config(10, 20_000) }, 1024).unwrap();
        assert!(told.contains("allows 460 clients"), "{told}");
        assert_eq!(warning_at(&config(10, 20_000), 20_000), None);
        assert_eq!(warning_at(&config(10, 50), 100), None);
    }
}

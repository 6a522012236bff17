//! An admission queue for container registries: an HTTP forward proxy that runs on every node, beside Dragonfly's
//! dfdaemon or containerd, and lets no more connections out to a registry than this node's share of what the registry
//! can serve. What comes on top waits its turn instead of failing.
//!
//! # The way of a request
//! ```text
//! listener -> head -> target -> route -> gate.admit().await -> connect -> relay -> outcome recorded, slot freed by Drop
//!                                 |            |
//!                            other_hosts   queue (bounded, first in first out, with deadlines)
//! ```
//! [`proxy`] reads the first head of a connection and finds out what it wants; [`upstream`] resolves the name, asks the
//! registry's [`admission::Gate`], and dials in the slot that it was given; the bytes are relayed, and the slot goes
//! back when the socket is gone. [`app`] wires the parts, [`admin`] shows them, [`config`] is the only one that knows
//! TOML.
//!
//! # Layers
//! Modules use only what stands below them; `tests/layering.rs` checks it.
//! ```text
//! 5 process     cli   app
//! 4 surfaces    proxy   admin
//! 3 upstream    upstream
//! 2 decision    admission
//! 1 vocabulary  config   target   address   metrics
//! ```
//!
//! # Promises kept, and the tests that prove them
//! The judge of the cap is the registry's own count and the kernel's list of sockets, never a counter of ours.
//!
//! 1. **Slots are sockets.** At no instant are there more sockets toward a registry than its slots, from before
//!    `connect()` until the registry, too, had the chance to see the end.
//!    *`storm::a_storm_in_absolute_form_is_served_whole_within_the_cap`,
//!    `storm::a_storm_of_tunnels_is_served_whole_within_the_cap`,
//!    `tunnel::a_slot_is_given_on_only_when_the_registry_saw_the_end`*
//! 2. **A waiter holds nothing**: no slot, no token, no socket toward a registry.
//!    *`core_tests::random_histories_keep_every_promise`*
//! 3. **Slot and token are taken together** by one decision, or neither is.
//!    *`core_tests::random_histories_keep_every_promise`, `rate::no_window_of_accepts_breaks_burst_and_rate`*
//! 4. **Nothing is lost.** Every accepted request ends in exactly one recorded outcome, and one that can still be
//!    served is never refused. *`storm::clients_that_cut_in_absolute_form_take_nothing_with_them`,
//!    `storm::clients_that_cut_their_tunnels_take_nothing_with_them`*
//! 5. **Nothing idles that could work.** *`core_tests::random_histories_keep_every_promise`*
//! 6. **One slot is enough** for HTTP that is visible: kept connections are given up when somebody waits.
//!    *`forward::one_slot_serves_two_authorities_in_turn`, `forward::an_idle_connection_gives_way_to_a_tunnel`*
//! 7. **It is never an open door.** It listens on loopback unless told otherwise, refuses addresses that the operator
//!    did not allow, and dials the address that it checked.
//!    *`refusals::dangerous_addresses_are_denied_in_every_spelling`, `refusals::other_hosts_are_denied_by_policy`,
//!    `refusals::another_spelling_takes_the_slot`*
//!
//! # Not yet
//! Turns among clients, classes and weights; kept places for clients that come back; reclaim of idle *tunnels* (a
//! tunnel holds its slot until its client or the registry ends it); pause and resume; the mirror listener, TLS to the
//! registry, retry and repair; shares leased from a store; counting what a crashed predecessor left in the kernel.

pub mod address;
pub mod admin;
pub mod admission;
pub mod app;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod proxy;
pub mod target;
pub mod upstream;

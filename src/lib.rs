//! An admission queue for container registries: an HTTP forward proxy that runs on every node, beside Dragonfly's
//! dfdaemon or containerd, and lets no more connections out to a registry than this node's share of what the registry
//! can serve. What comes on top waits its turn instead of failing.
//!
//! # The way of a request
//! ```text
//! listener -> head -> target -> route -> gate.admit().await -> connect -> relay -> outcome recorded, slot freed by Drop
//!                                 |            |
//!                            other_hosts   queue (bounded, in turns, with deadlines)
//! ```
//! [`listener`] reads the first head of a connection; [`tunnel`] serves a CONNECT, [`http`] everything else; [`upstream`] resolves the name, asks the
//! registry's [`admission::Gate`], and dials in the slot that it was given; the bytes are relayed, and the slot goes
//! back when the socket is gone. [`app`] wires the parts, [`admin`] shows them, [`config`] is the only one that knows
//! TOML. Where HTTP is visible, [`repair`] says which answers are worth asking for again.
//!
//! # Layers
//! Modules use only what stands below them; `tests/layering.rs` checks it.
//! ```text
//! 8 process     cli   app
//! 7 listeners   listener
//! 6 requests    http
//! 5 tunnels     tunnel
//! 4 surfaces    proxy   admin
//! 3 upstream    upstream
//! 2 decision    admission   repair   reclaim
//! 1 vocabulary  config   target   address   metrics   kernel   tcp   backoff
//! ```
//!
//! # Promises kept, and the tests that prove them
//! The judge of the cap is the registry's own count and the kernel's list of sockets, never a counter of ours.
//!
//! 1. **Slots are sockets.** At no instant are there more sockets toward a registry than its slots, from before
//!    `connect()` until the registry, too, had the chance to see the end.
//!    *`storm::a_storm_in_absolute_form_is_served_whole_within_the_cap`,
//!    `storm::a_storm_of_tunnels_is_served_whole_within_the_cap`,
//!    `tunnel::a_slot_is_given_on_only_when_the_registry_saw_the_end`,
//!    `forward::a_registry_that_lingers_is_reset_before_the_slot_is_given_on`*
//!    It holds across processes: *`restart::hand_overs_in_a_storm_cost_no_pull`,
//!    `restart::a_process_that_is_killed_does_not_make_the_next_one_exceed_the_slots`,
//!    `restart::a_process_that_is_killed_while_it_hands_over_does_not_make_the_next_one_exceed_the_slots`,
//!    `handing::a_slot_changes_hands_once`*, and across reloads:
//!    *`reload::shrinking_cuts_nobody_and_admits_nobody_until_below`,
//!    `reload::a_host_that_moves_is_refused_aloud_and_with_it_all_the_rest`*
//! 2. **A waiter holds nothing**: no slot, no token, no socket toward a registry.
//!    *`core_tests::random_histories_keep_every_promise`*
//! 3. **Slot and token are taken together** by one decision, or neither is.
//!    *`core_tests::random_histories_keep_every_promise`, `rate::no_window_of_accepts_breaks_burst_and_rate`*
//! 4. **Nothing is lost.** Every accepted request ends in exactly one recorded outcome, and one that can still be
//!    served is never refused. *`storm::clients_that_cut_in_absolute_form_take_nothing_with_them`,
//!    `storm::clients_that_cut_their_tunnels_take_nothing_with_them`*
//! 5. **Nothing idles that could work.** No wake-up is lost, in whatever order cancel, timeout, resize and release meet.
//!    *`core_tests::random_histories_keep_every_promise`,
//!    `handover_models::a_slot_granted_to_one_who_leaves_goes_to_the_next`,
//!    `handover_models::a_grant_and_fewer_slots_admit_no_more_than_fit`,
//!    `handover_models::two_who_wait_have_the_slot_one_after_the_other`*
//! 6. **Nobody starves.** Classes share by weight and clients take turns, both by slot-seconds held; one client's
//!    requests are first in, first out in two lanes.
//!    *`fairness_tests::nine_modest_clients_finish_beside_a_greedy_one_as_in_ideal_turns`,
//!    `fairness_tests::clients_get_the_same_slot_seconds_though_one_holds_ten_times_longer`,
//!    `fairness_tests::a_class_of_eight_times_the_weight_gets_eight_times_the_slot_seconds`,
//!    `fair_queue::newcomers_without_end_starve_nobody`,
//!    `fair_queue::small_requests_pass_a_blob_eight_times_and_no_more`, `core_tests::who_comes_back_goes_on_with_its_old_age`*
//! 7. **One slot is enough to make progress.** Idle connections, kept ones and tunnels, are given up when somebody waits,
//!    and no others. *`forward::one_slot_serves_two_authorities_in_turn`,
//!    `reclaim::an_unused_tunnel_gives_way_after_its_pause`,
//!    `reclaim::a_tunnel_with_a_request_in_flight_is_never_taken`*
//! 8. **It is never an open door.** It listens on loopback unless told otherwise, refuses addresses that the operator
//!    did not allow, and dials the address that it checked.
//!    *`refusals::dangerous_addresses_are_denied_in_every_spelling`, `refusals::other_hosts_are_denied_by_policy`,
//!    `refusals::another_spelling_takes_the_slot`*
//!
//! # Not yet
//! Shares leased from a store.

pub mod address;
pub mod admin;
pub mod admission;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod config;
pub mod distress;
pub mod http;
pub mod kernel;
pub mod listener;
pub mod metrics;
pub mod proxy;
pub mod reclaim;
pub mod repair;
pub mod target;
pub mod tcp;
pub mod tunnel;
pub mod upstream;

//! An admission queue for container registries: a registry mirror and forward proxy on every node, beside Dragonfly's dfdaemon or
//! containerd. It opens no more connections to a registry than this node's share of what the registry can serve. Further
//! requests wait instead of failing.
//!
//! # The way of a request
//! ```text
//! listener -> head -> target -> route -> gate.admit().await -> connect -> relay -> outcome recorded, slot freed by Drop
//!                                 |            |
//!                            other_hosts   queue (bounded, fair, with deadlines)
//! ```
//! [`listener`] reads the head of each request. [`tunnel`] serves a CONNECT, [`http`] everything else. [`upstream`]
//! resolves the name, asks the registry's [`admission::Gate`], and dials in the slot that it was given. The bytes are relayed,
//! and the slot returns when the socket is gone. Where HTTP is visible, [`repair`] decides which answers are worth asking
//! again, and [`distress`] whether a registry is believed. [`app`] wires the parts, [`admin`] shows them. `ARCHITECTURE.md` has
//! the picture, the owner of the slot at each step, and the place of each kind of change.
//!
//! # Layers
//! Modules use only modules on lower levels; `tests/layering.rs` checks it.
//! ```text
//! 8 process     cli   app   calibrate   doctor
//! 7 listeners   listener
//! 6 requests    http
//! 5 tunnels     tunnel
//! 4 surfaces    proxy   admin   control   explain   debug_dump   plan   bypass
//! 3 upstream    upstream   setup   fleet
//! 2 decision    adapt   admission   distress   observe   repair   reclaim
//! 1 vocabulary  config   lease   target   address   metrics   kernel   tcp   splice   backoff
//! ```
//!
//! # The promises, and the tests that prove them
//! The judge of the cap is the registry's own count and the kernel's list of sockets, never a counter of ours.
//!
//! 1. **Slots are sockets.** At no instant are there more sockets toward a registry than its slots, from before
//!    `connect()` until the registry, too, had the chance to see the end. In mode observe no slots hold, and it says so.
//!    *`storm::a_storm_in_absolute_form_is_served_whole_within_the_cap`,
//!    `storm::a_storm_of_tunnels_is_served_whole_within_the_cap`,
//!    `tunnel::a_slot_is_given_on_only_when_the_registry_saw_the_end`,
//!    `forward::a_registry_that_lingers_is_reset_before_the_slot_is_given_on`*
//!    It holds across processes: *`restart::hand_overs_in_a_storm_cost_no_pull`,
//!    `restart::a_process_that_is_killed_does_not_make_the_next_one_exceed_the_slots`,
//!    `restart::a_process_that_is_killed_while_it_hands_over_does_not_make_the_next_one_exceed_the_slots`,
//!    `takeover_tests::a_slot_changes_hands_once`*, and across reloads:
//!    *`reload::shrinking_cuts_nobody_and_admits_nobody_until_below`, `observe::a_reload_holds_the_cap_from_then_on_and_lets_go_again`,
//!    `reload::a_host_that_moves_is_refused_aloud_and_with_it_all_the_rest`*
//! 2. **A waiter holds nothing**: no slot, no token, no socket to a registry.
//!    *`core_tests::random_histories_keep_every_promise`*
//! 3. **Slot and token are taken together** by one decision, or neither is.
//!    *`core_tests::random_histories_keep_every_promise`, `rate::no_accept_comes_before_burst_and_rate_allow_it`,
//!    `core_tests::a_vanished_waiters_slot_and_token_go_to_the_next`*
//! 4. **Nothing is lost.** Every accepted request ends in exactly one recorded outcome, and a request that can still be served
//!    is never refused. *`storm::clients_that_cut_in_absolute_form_take_nothing_with_them`,
//!    `storm::clients_that_cut_their_tunnels_take_nothing_with_them`, `storm::an_outage_of_20_s_costs_no_tunnel_of_a_storm`*
//! 5. **Nothing idles that could work.** No wake-up is lost, in any order of cancel, timeout, resize and release.
//!    *`core_tests::random_histories_keep_every_promise`,
//!    `handover_models::a_slot_granted_to_one_who_leaves_goes_to_the_next`,
//!    `handover_models::a_grant_and_fewer_slots_admit_no_more_than_fit`,
//!    `handover_models::two_who_wait_have_the_slot_one_after_the_other`*
//! 6. **Nobody starves.** Classes share by weight and clients share within a class, both by the time that they hold slots. The
//!    requests of one client are first in, first out, in two lanes.
//!    *`fairness_tests::nine_modest_clients_finish_beside_a_greedy_one_as_in_ideal_turns`,
//!    `fairness_tests::clients_get_the_same_slot_seconds_though_one_holds_ten_times_longer`,
//!    `fairness_tests::a_class_of_eight_times_the_weight_gets_eight_times_the_slot_seconds`,
//!    `fair_queue::newcomers_without_end_starve_nobody`,
//!    `fair_queue::small_requests_pass_a_blob_eight_times_and_no_more`,
//!    `fair_queue::small_requests_without_end_take_no_more_time_than_the_blobs`, `core_tests::who_comes_back_goes_on_with_its_old_age`*
//! 7. **One slot is enough to make progress, and nothing in flight is cut for it.** Idle connections, pooled ones and tunnels,
//!    are reclaimed when a request waits, and no others. *`forward::one_slot_serves_two_authorities_in_turn`,
//!    `reclaim::an_unused_tunnel_gives_way_after_its_pause`, `reclaim::a_tunnel_with_a_request_in_flight_is_never_taken`,
//!    `pullers::a_daemons_pulls_end_whole_on_one_slot`,
//!    `stalls::a_client_that_takes_nothing_keeps_its_tunnel_no_longer_than_a_stall`*
//! 8. **It is never an open door.** It listens on loopback unless the operator says otherwise, refuses addresses that the
//!    operator did not allow, and dials the address that it checked.
//!    *`refusals::dangerous_addresses_are_denied_in_every_spelling`, `refusals::other_hosts_are_denied_by_policy`,
//!    `refusals::another_spelling_takes_the_slot`, `mirror::a_name_of_the_world_that_leads_here_is_not_answered`*
//! 9. **Every byte arrives, or the client hears that it did not.** *`slow_tunnels::an_answer_that_is_cut_is_no_success`,
//!    `exchanges::no_body_is_lost_doubled_or_shortened_unnoticed`,
//!    `early_answers::an_early_refusal_reaches_a_client_that_still_sends`,
//!    `resume::a_blob_that_is_cut_arrives_exactly_or_breaks_off`*
//!
//! 10. **The cluster's sum holds.** With leased shares, the slots of all nodes together never exceed the cap, whatever happens to
//!     nodes, network and store. *`simulation::no_fault_lets_a_fleet_overshoot`,
//!     `lease::no_fault_of_the_store_lets_the_fleet_exceed_the_cap_or_fail_a_request`*

#![forbid(unsafe_code)]

mod adapt;
mod address;
mod admin;
pub mod admission;
pub mod app;
mod backoff;
mod bypass;
mod calibrate;
pub mod cli;
pub mod config;
mod control;
mod debug_dump;
mod distress;
mod doctor;
mod explain;
pub mod fleet;
mod http;
mod kernel;
pub mod lease;
mod listener;
mod metrics;
mod observe;
mod plan;
mod proxy;
mod reclaim;
mod repair;
mod setup;
mod splice;
mod target;
mod tcp;
pub mod tunnel;
mod upstream;

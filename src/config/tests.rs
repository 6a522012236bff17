//! Whole files in, configurations or lists of problems out. The shipped file is one of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::shown::KeyLines;
use super::*;
use crate::target::{Host, HostPattern, Origin};

const SHIPPED: &str = include_str!("../../sidecar.toml");

/// The least that a file must say.
const LEAST: &str = "\
[registries.harbor]
hosts = ['harbor.example.com']
cap = 200
share = '1/20'
";

/// The problems of a text, each as `line key: reason`.
fn problems(text: &str) -> Vec<String> {
    let problems = Config::parse(text).unwrap_err();
    let shown = |p: &Problem| format!("{} {}: {}", p.line, p.key, p.reason);
    problems.problems.iter().map(shown).collect()
}

/// Asserts that a text has exactly these problems, each given by how it begins.
fn assert_problems(text: &str, expected: &[&str]) {
    let found = problems(text);
    let agree = |(found, expected): (&String, &&str)| found.starts_with(expected);
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(agree),
        "in\n{text}\nexpected {expected:#?}\nfound {found:#?}"
    );
}

/// The least file, with lines of the table `registries.harbor` after it: the first is line 5.
fn with(lines: &str) -> String {
    format!("{LEAST}{lines}")
}

/// The least file as two settings short of a registry: `cap` and `share` as given, on lines 3 and 4.
fn sized(cap: &str, share: &str) -> String {
    format!("[registries.harbor]\nhosts = ['harbor']\ncap = {cap}\nshare = {share}\n")
}

#[test]
fn the_least_file_gives_the_defaults() {
    let seconds = Duration::from_secs;
    let expected = Config {
        drain_timeout: seconds(30),
        threads: 1,
        listen: ListenConfig {
            proxy: "127.0.0.1:4128".parse().unwrap(),
            admin: "127.0.0.1:4129".parse().unwrap(),
            metrics: None,
            control: None,
            control_token_file: None,
            allow_clients: Vec::new(),
            max_clients: 20_000,
            head_timeout: seconds(10),
        },
        log: LogConfig { format: LogFormat::Text, level: "info" },
        classes: vec![ClassConfig::default()],
        registries: vec![RegistryConfig {
            name: "harbor".to_owned(),
            hosts: vec![HostPattern::parse("harbor.example.com").unwrap()],
            cap: 200,
            share: Share::parse("1/20").unwrap(),
            slots: 10,
            mode: Mode::Enforce,
            rate_per_second: None,
            burst: None,
            rate: None,
            connect_timeout: seconds(5),
            linger: seconds(1),
            idle_timeout: seconds(60),
            max_lifetime: seconds(1_800),
            max_connecting: 10,
            queue: QueueConfig {
                depth: 10_000,
                tunnel_timeout: seconds(50),
                request_timeout: seconds(25),
                keep_place: seconds(30),
                least_rate: None,
            },
            reclaim: ReclaimConfig {
                idle_after: seconds(1),
                unused_after: seconds(3),
                unsure_after: seconds(10),
                stall_timeout: seconds(300),
                learn: true,
            },
            tls: TlsConfig::default(),
            mirror: None,
            repair: RepairConfig { enabled: true, ambiguous_401: None },
            adapt: AdaptConfig { enabled: Some(false), floor: 1 },
        }],
        other_hosts: OtherHosts::Direct,
        lease: None,
        warnings: Vec::new(),
        from_environment: BTreeMap::new(),
        in_file: KeyLines::default(),
        settings: Config::parse(LEAST).unwrap().settings,
    };
    assert_eq!(Config::parse(LEAST), Ok(expected));
}

#[test]
fn every_setting_arrives_where_it_belongs() {
    let config = Config::parse(
        r#"
drain_timeout = "1s"
threads = 8
[listen]
proxy = "0.0.0.0:1"
admin = "[::1]:2"
metrics = "127.0.0.1:3"
allow_clients = ["10.0.0.0/8", "fd00::1"]
max_clients = 4
head_timeout = "5s"
[log]
format = "json"
level = "debug"
[registries.zebra]
hosts = ["zebra", "*.zebra:443"]
cap = 6
share = "50%"
rate_per_second = 2.5
burst = 7
connect_timeout = "8s"
linger = "9s"
max_lifetime = "10s"
idle_timeout = "11s"
queue = { depth = 0, tunnel_timeout = "12s", request_timeout = "13s" }
[registries.ant]
hosts = ["ant"]
cap = 1
share = 1
[other_hosts]
policy = "deny"
"#,
    )
    .unwrap();
    let seconds = Duration::from_secs;
    let expected = ListenConfig {
        proxy: "0.0.0.0:1".parse().unwrap(),
        admin: "[::1]:2".parse().unwrap(),
        metrics: Some("127.0.0.1:3".parse().unwrap()),
        control: None,
        control_token_file: None,
        allow_clients: vec!["10.0.0.0/8".parse().unwrap(), "fd00::1/128".parse().unwrap()],
        max_clients: 4,
        head_timeout: seconds(5),
    };
    assert_eq!((config.drain_timeout, config.threads), (seconds(1), 8));
    assert_eq!(config.listen, expected);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.other_hosts, OtherHosts::Deny);

    let names: Vec<_> = config.registries.iter().map(|r| &r.name).collect();
    assert_eq!(names, ["zebra", "ant"], "in the order of the file");
    let zebra = &config.registries[0];
    assert_eq!((zebra.cap, zebra.slots, zebra.hosts.len()), (6, 3, 2));
    let rate = zebra.rate.unwrap();
    assert_eq!((rate.period, rate.burst.get()), (Duration::from_millis(400), 7));
    let timeouts = [zebra.connect_timeout, zebra.linger, zebra.max_lifetime, zebra.idle_timeout];
    assert_eq!(timeouts, [8, 9, 10, 11].map(seconds));
    let expected = QueueConfig {
        depth: 0,
        tunnel_timeout: seconds(12),
        request_timeout: seconds(13),
        keep_place: seconds(30),
        least_rate: None,
    };
    assert_eq!(zebra.queue, expected);
}

#[test]
fn six_mistakes_are_six_problems_with_their_lines() {
    let text = r#"drain_timeout = 30

[listen]
proxi = "127.0.0.1:4128"

[registries.harbor]
hosts = [
    "harbor.example.com",
    "https://harbor.example.com",
]
cap = 10
share = "1/20"

[registries.harbor.queue]
depth = -1

[lease]
redis = "redis://127.0.0.1:6379/0"
"#;
    assert_eq!(
        problems(text),
        [
            "1 drain_timeout: a plain number has no unit: write \"30s\"",
            "4 listen.proxi: unknown key, did you mean `proxy`?",
            "9 registries.harbor.hosts: \"https://harbor.example.com\" is not a host, host:port or \
             *.suffix: a scheme, path or query does not belong here: write host:port, such as \
             harbor.example.com:443",
            "12 registries.harbor.share: cap 10 x share 1/20 = 0.5, which is less than one slot: \
             raise registries.harbor.cap, or the share to at least 1/10",
            "15 registries.harbor.queue.depth: must be a whole number from 0 to 1000000",
            "17 lease.nodes: is required, for instance nodes = 20",
        ]
    );
}

/// Its meaning for other settings is not known.
#[test]
fn a_setting_with_a_problem_is_reported_once() {
    for (lines, expected) in [
        ("[listen]\nproxy = 1\nadmin = '127.0.0.1:4128'", "6 listen.proxy: expected a string"),
        ("[listen]\nproxy = '0.0.0.0:1'\nallow_clients = 1", "7 listen.allow_clients: expected a list"),
        ("[registries.b]\nhosts = [1, 'harbor.example.com']\ncap = 1\nshare = 1", "6 registries.b.hosts: expected"),
        ("[registries.b]\nhosts = ['b']\ncap = 0\nshare = '1/2'", "7 registries.b.cap: must be"),
        ("rate_per_second = true\nburst = 1", "5 registries.harbor.rate_per_second: expected"),
        ("tls.client_cert_file = 'a'\ntls.client_key_file = ''", "6 registries.harbor.tls.client_key_file: is empty"),
    ] {
        assert_problems(&with(lines), &[expected]);
    }
}

/// The problems of the least file beside a registry `b-2`, with these variables.
fn problems_with(environment: &[(&str, &str)]) -> Result<Config, String> {
    let text = with("[registries.b-2]\nhosts = ['b']\nshare = 1\n");
    let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::parse_with(&text, environment).map_err(|problems| problems.to_string())
}

#[test]
fn the_environment_sets_keys_that_are_no_lists() {
    let set = [
        ("ROADSTEAD__registries__b_2__cap", "7"),
        ("ROADSTEAD__registries__harbor__share", "1/2"),
        ("ROADSTEAD__registries__harbor__queue__tunnel_timeout", "9s"),
        ("ROADSTEAD__registries__harbor__reclaim__learn", "false"),
        ("ROADSTEAD__log__level", "debug"),
        ("ROADSTEAD__drain_timeout", "'1m'"),
        ("ROADSTEAD_SERVICE_HOST", "10.0.0.1"),
    ];
    let config = problems_with(&set).unwrap();
    let harbor = &config.registries[0];
    assert_eq!((config.registries[1].cap, harbor.slots, harbor.reclaim.learn), (7, 100, false));
    assert_eq!((harbor.queue.tunnel_timeout, config.drain_timeout), (Duration::from_secs(9), Duration::from_secs(60)));
    assert_eq!((config.log.level, config.from_environment.len()), ("debug", 6));
    assert_eq!(config.from_environment["registries.b-2.cap"], "ROADSTEAD__registries__b_2__cap");

    let cap = ("ROADSTEAD__registries__b_2__cap", "7");
    for (name, text, expected) in [
        (
            "ROADSTEAD__registries__harbor__cap",
            "x",
            "line 3: registries.harbor.cap: expected a whole number, found string (set by ROADSTEAD__registries__harbor__cap)",
        ),
        ("ROADSTEAD__registries__other__cap", "1", "line 1: ROADSTEAD__registries__other__cap: sets no key: the name"),
        ("ROADSTEAD__registries__harbor__hosts", "a", "line 1: ROADSTEAD__registries__harbor__hosts: sets no key"),
    ] {
        let problems = problems_with(&[cap, (name, text)]).unwrap_err();
        assert!(problems.starts_with(expected) && problems.lines().count() == 1, "{problems}");
    }
    assert!(problems_with(&[]).unwrap_err().contains("registries.b-2.cap: is required"));
}

#[test]
fn a_variable_that_stands_for_two_keys_is_refused() {
    let text =
        "[registries.a-b]\nhosts = ['a']\ncap = 1\nshare = 1\n[registries.a_b]\nhosts = ['b']\ncap = 1\nshare = 1\n";
    let set = ("ROADSTEAD__registries__a_b__cap".to_owned(), "2".to_owned());
    let problems = Config::parse_with(text, [set]).unwrap_err().to_string();
    assert_eq!(
        problems,
        "line 7: registries.a_b.cap: ROADSTEAD__registries__a_b__cap stands for this key and for registries.a-b.cap: \
         rename one of the tables"
    );
}

#[test]
fn keys_that_are_not_built_are_unknown() {
    for (lines, expected) in [
        ("[listen]\nproxy_addr = 1", "6 listen.proxy_addr: unknown key"),
        ("[log]\nlevle = 'info'", "6 log.levle: unknown key, did you mean `level`?"),
    ] {
        assert_problems(&with(lines), &[expected]);
    }
}

#[test]
fn a_mirror_is_read_with_its_tls_and_repair() {
    let config = Config::parse(&with(
        r#"
[registries.harbor.tls]
ca_file = "/ca.pem"
client_cert_file = "/cert.pem"
client_key_file = "/key.pem"
server_name = "Zot.example.com"
insecure_skip_verify = true
[registries.harbor.mirror]
listen = "127.0.0.1:4130"
upstream = ["https://a.example.com", "http://b.example.com:8080/"]
public_urls = ["https://harbor.example.com/"]
rewrite = false
class = "bulk"
cap_per_upstream = true
[registries.harbor.repair]
enabled = false
ambiguous_401 = 2
[classes.bulk]
"#,
    ))
    .unwrap();
    let registry = &config.registries[0];
    let tls = TlsConfig {
        ca_file: Some("/ca.pem".into()),
        client_cert_file: Some("/cert.pem".into()),
        client_key_file: Some("/key.pem".into()),
        server_name: Some(Host::Name("zot.example.com".to_owned())),
        insecure_skip_verify: true,
    };
    let mirror = MirrorConfig {
        listen: "127.0.0.1:4130".parse().unwrap(),
        upstream: ["https://a.example.com", "http://b.example.com:8080"].map(|url| Origin::parse(url).unwrap()).into(),
        public_urls: Some(vec![Origin::parse("https://harbor.example.com").unwrap()]),
        rewrite: false,
        class: "bulk".to_owned(),
        cap_per_upstream: true,
    };
    assert_eq!((&registry.tls, &registry.mirror), (&tls, &Some(mirror)));
    assert_eq!(registry.repair, RepairConfig { enabled: false, ambiguous_401: Some(2) });
    assert_eq!((registry.slots, registry.max_connecting), (20, 20), "ten for each URL");
    let warned: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    let expected = ["tls.insecure_skip_verify", "mirror.upstream", "repair.ambiguous_401"];
    assert_eq!(warned, expected.map(|key| format!("registries.harbor.{key}")));
}

#[test]
fn a_mirror_must_agree_with_the_rest_of_the_file() {
    let mirror = "[registries.harbor.mirror]\nupstream = 'https://harbor.example.com'\n";
    let wide = "6 registries.harbor.mirror.listen: 0.0.0.0:1 is not a loopback address, so listen.allow_clients";
    for (lines, expected) in [
        ("", "5 registries.harbor.mirror.listen: is required, for instance listen = \"127.0.0.1:4130\""),
        (
            "listen = '127.0.0.1:4129'",
            "7 registries.harbor.mirror.listen: 127.0.0.1:4129 cannot be bound beside listen.admin",
        ),
        ("listen = '0.0.0.0:1'", &wide.replace("6 ", "7 ")),
        (
            "listen = '127.0.0.1:1'\nclass = 'x'",
            "8 registries.harbor.mirror.class: there is no table [classes.x]: add it",
        ),
        (
            "listen = '127.0.0.1:1'\nrewrit = true",
            "8 registries.harbor.mirror.rewrit: unknown key, did you mean `rewrite`?",
        ),
        ("listen = '127.0.0.1:1'\n[registries.harbor.tls]\nca_file = ''", "9 registries.harbor.tls.ca_file: is empty"),
        (
            "listen = '127.0.0.1:1'\n[registries.harbor.tls]\nclient_key_file = 'k'",
            "9 registries.harbor.tls.client_key_file: has no meaning without client_cert_file",
        ),
        (
            "listen = '127.0.0.1:1'\n[registries.harbor.tls]\nserver_name = '10.0.0.1'",
            "9 registries.harbor.tls.server_name: \"10.0.0.1\" is not a name alone, such as",
        ),
        (
            "listen = '127.0.0.1:1'\n[registries.other]\nhosts = ['harbor.example.com:443']\ncap = 1\nshare = 1",
            "9 registries.other.hosts: harbor.example.com:443 is claimed by registries.harbor and by registries.other",
        ),
    ] {
        assert_problems(&with(&format!("{mirror}{lines}\n")), &[expected]);
    }
    let twice = "[registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = ['https://a', 'https://a:443/']\n";
    assert_problems(&with(twice), &["7 registries.harbor.mirror.upstream: https://a is listed twice"]);
    let several = "[registries.harbor]\nhosts = ['*.example.com']\ncap = 1\nshare = 1\n\
                   [registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = ['https://a', 'https://b']\n";
    assert_problems(several, &["2 registries.harbor.hosts: mirror.upstream has several URLs, and all of them are"]);
    assert!(Config::parse(&several.replace("['*.example.com']", "['*.example.com', 'a.b']")).is_ok());
    let url = "[registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = ['https://a/v2/']\n";
    assert_problems(
        &with(url),
        &["7 registries.harbor.mirror.upstream: \"https://a/v2/\" is not the URL of a host: a path"],
    );
}

#[test]
fn what_is_required_is_asked_for_at_its_table() {
    assert_problems("", &["1 registries: at least one registry is required"]);
    assert_problems("\n[registries]\n", &["2 registries: at least one registry is required"]);
    let required = [
        "2 registries.a.hosts: is required, for instance hosts = [\"harbor.example.com\"]",
        "2 registries.a.cap: is required, for instance cap = 200",
        "2 registries.a.share: is required, for instance share = \"1/20\"",
    ];
    assert_problems("\n[registries.a]\n", &required);
    assert_problems(&sized("0", "1"), &["3 registries.harbor.cap: must be a whole number from 1"]);
}

#[test]
fn a_table_must_be_a_table() {
    for (text, expected) in [
        ("registries = 1", "1 registries: expected a table [registries], found integer"),
        ("[[registries]]", "1 registries: expected a table [registries], found array"),
        ("registries.a = 1", "1 registries.a: expected a table [registries.a], found integer"),
    ] {
        assert_problems(text, &[expected]);
    }
    let text = with("queue = 5");
    assert_problems(&text, &["5 registries.harbor.queue: expected a table"]);
}

#[test]
fn lists_are_lists_and_not_empty() {
    for (hosts, expected) in [
        ("'a'", "2 registries.harbor.hosts: expected a list, found string: write hosts = [\"harbor"),
        ("[]", "2 registries.harbor.hosts: is empty"),
        ("[1]", "2 registries.harbor.hosts: expected a string in quotes, found integer"),
    ] {
        let text = format!("[registries.harbor]\nhosts = {hosts}\ncap = 1\nshare = 1\n");
        assert_problems(&text, &[expected]);
    }
    assert_problems(&with("[listen]\nallow_clients = []"), &["6 listen.allow_clients: is empty"]);
}

#[test]
fn a_share_of_less_than_one_slot_is_refused_with_the_sum() {
    let slots = |cap, share| Config::parse(&sized(cap, share)).unwrap().registries[0].slots;
    assert_eq!(slots("100", "0.29"), 29);
    assert_eq!(slots("20", "'1/20'"), 1);
    assert_eq!(
        problems(&sized("10", "0.01")),
        ["4 registries.harbor.share: cap 10 x share 1/100 = 0.1, which is less than one slot: \
          raise registries.harbor.cap, or the share to at least 1/10"]
    );
    assert_problems(&sized("10", "2"), &["4 registries.harbor.share: a share is more than 0"]);
}

#[test]
fn a_rate_has_a_burst_of_one_second_unless_told() {
    let rate = |lines| Config::parse(&with(lines)).unwrap().registries[0].rate;
    assert_eq!(rate(""), None);
    assert_eq!(rate("rate_per_second = 50").unwrap().burst.get(), 50);
    assert_eq!(rate("rate_per_second = 0.5").unwrap().burst.get(), 1);
    assert_eq!(rate("rate_per_second = 50\nburst = 100").unwrap().burst.get(), 100);
    for (lines, expected) in [
        ("burst = 5", "5 registries.harbor.burst: has no meaning without rate_per_second"),
        ("rate_per_second = 0", "5 registries.harbor.rate_per_second: must be from 0.001"),
        ("rate_per_second = -1", "5 registries.harbor.rate_per_second: must be"),
        ("rate_per_second = '50'", "5 registries.harbor.rate_per_second: expected a number"),
        ("rate_per_second = nan", "5 registries.harbor.rate_per_second: must be"),
        ("rate_per_second = 5\nburst = 0", "6 registries.harbor.burst: must be"),
    ] {
        assert_problems(&with(lines), &[expected]);
    }
}

#[test]
fn registries_have_plain_names() {
    let named = |name: &str| LEAST.replace("harbor]", &format!("{name}]"));
    for name in ["h", "harbor-2", "harbor_2", "0", &"a".repeat(63)] {
        assert!(Config::parse(&named(name)).is_ok(), "{name}");
    }
    for name in ["Harbor", "a__b", "'a b'", "'a.b'", "''", &"a".repeat(64)] {
        let found = problems(&named(name));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("the name of a registry has 1 to 63 characters"), "{found:?}");
    }
    assert_problems(
        &named("other_hosts"),
        &["1 registries.other_hosts: other_hosts stands for hosts that no registry lists"],
    );
}

#[test]
fn two_registries_cannot_claim_one_host() {
    let two = |first: &str, second: &str| {
        format!(
            "[registries.b]\nhosts = ['{first}']\ncap = 1\nshare = 1\n\
             [registries.a]\nhosts = [\n'x',\n'{second}']\ncap = 1\nshare = 1\n"
        )
    };
    let clash = "8 registries.a.hosts: harbor is claimed by registries.b and by registries.a";
    assert_problems(&two("harbor", "HARBOR."), &[clash]);
    assert_problems(&two("*.c.com", "*.c.com"), &["8 registries.a.hosts: *.c.com is claimed by"]);
    for (first, second) in [("harbor", "harbor:80"), ("a.com", "*.com"), ("*.a.com", "*.com")] {
        assert!(Config::parse(&two(first, second)).is_ok(), "{first} {second}");
    }
    assert!(Config::parse(&LEAST.replace("['", "['harbor', 'harbor', '")).is_ok());
}

#[test]
fn a_name_a_uid_and_a_range_belong_to_one_class() {
    let two = |one: &str, other: &str| with(&format!("[classes.a]\n{one}\n[classes.b]\n{other}\n"));
    for (one, other, expected) in [
        ("users = ['x', 'ci']", "users = ['ci']", "8 classes.b.users: ci is claimed by classes.a and by classes.b"),
        ("uids = [0, 7]", "uids = [7]", "8 classes.b.uids: uid 7 is claimed by classes.a and by classes.b"),
        (
            "addresses = ['10.0.0.0/8']",
            "addresses = ['10.1.2.3/8']",
            "8 classes.b.addresses: address range 10.0.0.0/8 is claimed by classes.a and by classes.b",
        ),
        ("uids = [-1]", "", "6 classes.a.uids: must be a whole number from 0 to 4294967294"),
        ("addresses = ['a']", "", "6 classes.a.addresses: \"a\" is not an address range"),
    ] {
        assert_problems(&two(one, other), &[expected]);
    }
    // Beside user names they only say whose names count; ranges may lie in one another.
    let config =
        Config::parse(&two("users = ['x']\nuids = [7]", "uids = [7]\naddresses = ['10.0.0.0/8', '10.1.0.0/16']"));
    let [default, a, b] = <[ClassConfig; 3]>::try_from(config.unwrap().classes).unwrap();
    assert_eq!(default, ClassConfig::default());
    assert_eq!((a.users, a.uids, b.uids, b.addresses.len()), (vec!["x".to_owned()], vec![7], vec![7], 2));
}

/// The public targets of a registry with these hosts and these lines in its mirror, and the keys of the warnings.
fn public(hosts: &str, mirror: &str) -> (Vec<String>, Vec<String>) {
    let head = format!("[registries.harbor]\nhosts = [{hosts}]\ncap = 1\nshare = 1\n[registries.harbor.mirror]\n");
    let config = Config::parse(&format!("{head}listen = '127.0.0.1:1'\n{mirror}\n")).unwrap();
    let warned = config.warnings.iter().map(|warning| warning.key.replace("registries.harbor.mirror.", "")).collect();
    (config.registries[0].public_targets().iter().map(ToString::to_string).collect(), warned)
}

#[test]
fn public_urls_are_those_of_upstream_and_hosts_with_a_port_unless_told() {
    for (hosts, mirror, expected, warned) in [
        ("'h.example.com'", "upstream = 'https://h.example.com'", &["h.example.com:443"][..], &[][..]),
        // GitLab serves the registry on :5050 and its tokens on :443.
        ("'h.example.com'", "upstream = 'https://h.example.com:5050'", &["h.example.com:5050"], &[]),
        (
            "'h.example.com:30003'",
            "upstream = 'http://harbor.svc'",
            &["harbor.svc:80", "h.example.com:30003"],
            &["upstream"],
        ),
        ("'h.example.com', 'harbor.svc'", "upstream = 'http://harbor.svc'", &["harbor.svc:80"], &["public_urls"]),
        ("'h.example.com', 'harbor.svc'", "upstream = 'http://harbor.svc'\nrewrite = false", &["harbor.svc:80"], &[]),
        ("'*.example.com', '*.example.com:5000'", "upstream = 'https://h.example.com'", &["h.example.com:443"], &[]),
        (
            "'h.example.com:1', 'auth.example.com'",
            "upstream = 'https://h.example.com:1'\npublic_urls = ['https://h.example.com:2']",
            &["h.example.com:2"],
            &[],
        ),
    ] {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(public(hosts, mirror), (strings(expected), strings(warned)), "{hosts} {mirror}");
    }
    let stolen = with(
        "[registries.other]\nhosts = ['o']\ncap = 1\nshare = 1\n[registries.other.mirror]\n\
                       listen = '127.0.0.1:1'\nupstream = 'https://o'\npublic_urls = ['https://harbor.example.com', 'https://o']\n",
    );
    assert!(Config::parse(&stolen).is_ok(), "a name at one port is another claim than the name at all ports");
    let stolen = stolen.replace("['harbor.example.com']", "['harbor.example.com:443']");
    assert_problems(&stolen, &["12 registries.other.mirror.public_urls: harbor.example.com:443 is claimed by"]);
}

#[test]
fn an_upstream_that_hosts_does_not_name_is_warned_about() {
    let nodes = "upstream = ['https://10.1.0.1', 'https://10.1.0.2']";
    assert_eq!(public("'h.example.com'", &format!("{nodes}\npublic_urls = ['https://h.example.com']")).1, ["upstream"]);
    let proven = format!(
        "{nodes}\npublic_urls = ['https://h.example.com']\n[registries.harbor.tls]\nserver_name = 'h.example.com'"
    );
    assert_eq!(public("'h.example.com'", &proven).1, [""; 0], "the nodes prove a name that is listed");
}

#[test]
fn listeners_have_addresses_of_their_own() {
    for (lines, expected) in [
        (
            "proxy = '127.0.0.1:4129'",
            "5 listen.admin: 127.0.0.1:4129 cannot be bound beside listen.proxy = 127.0.0.1:4129",
        ),
        ("metrics = '127.0.0.1:4129'", "6 listen.metrics: 127.0.0.1:4129 cannot be bound beside listen.admin"),
        ("metrics = '0.0.0.0:4128'", "6 listen.metrics: 0.0.0.0:4128 cannot be bound beside listen.proxy"),
    ] {
        assert_problems(&with(&format!("[listen]\n{lines}")), &[expected]);
    }
    for lines in ["proxy = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nmetrics = '127.0.0.1:0'", "metrics = '127.0.0.2:4128'"]
    {
        assert!(Config::parse(&with(&format!("[listen]\n{lines}"))).is_ok(), "{lines}");
    }
}

#[test]
fn a_wide_proxy_address_needs_a_list_of_clients() {
    let open = "6 listen.proxy: 0.0.0.0:1 is not a loopback address, so listen.allow_clients is \
                required, and with other_hosts.policy = \"direct\" it would be an open proxy: write";
    let wide = with("[listen]\nproxy = '0.0.0.0:1'\n");
    assert_problems(&wide, &[open]);
    let denied = "6 listen.proxy: 0.0.0.0:1 is not a loopback address, so listen.allow_clients is \
                  required: write";
    assert_problems(&format!("{wide}[other_hosts]\npolicy = 'deny'"), &[denied]);
    assert!(Config::parse(&format!("{wide}allow_clients = ['10.0.0.0/8']")).is_ok());
    for loopback in ["127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        let text = with(&format!("[listen]\nproxy = '{loopback}'"));
        assert!(Config::parse(&text).is_ok(), "{loopback}");
    }
}

#[test]
fn likely_mistakes_are_warned_about() {
    let text = with(
        "idle_timeout = '75s'
connect_timeout = '15s'
queue.tunnel_timeout = '45s'
[listen]
admin = '10.0.0.5:4129'
",
    );
    let warnings = Config::parse(&text).unwrap().warnings;
    let places: Vec<_> = warnings.iter().map(|w| (w.line, w.key.as_str())).collect();
    let expected =
        [(5, "registries.harbor.idle_timeout"), (7, "registries.harbor.queue.tunnel_timeout"), (9, "listen.admin")];
    assert_eq!(places, expected);
    assert!(warnings[1].reason.contains("tunnel_timeout 45s + connect_timeout 15s = 1m"));

    let short = with("reclaim.idle_after = '999ms'\nreclaim.unused_after = '3s'\nreclaim.unsure_after = '1s'");
    let warned: Vec<_> = Config::parse(&short).unwrap().warnings.into_iter().map(|warning| warning.key).collect();
    assert_eq!(warned, ["registries.harbor.reclaim.idle_after", "registries.harbor.reclaim.unsure_after"]);

    let defaulted = Config::parse(&with("connect_timeout = '10s'")).unwrap();
    assert_eq!(defaulted.warnings[0].line, 1, "a setting that is absent has its table's line");

    let below = with("idle_timeout = '74s'\nconnect_timeout = '9s'");
    assert_eq!(Config::parse(&below).unwrap().warnings, []);
}

/// An upstream counts as listed by host and port, by a pattern, or by the name that its certificate proves.
#[test]
fn an_upstream_that_no_entry_of_hosts_names_is_warned_about() {
    for (hosts, upstream, tls, expected) in [
        ("'h.example.com'", "'https://h.example.com'", "", None),
        ("'h.example.com'", "'http://h.example.com:8080'", "", None),
        ("'*.example.com'", "'https://h.example.com'", "", None),
        ("'h.example.com:443'", "'https://h.example.com'", "", None),
        ("'h.example.com:8443'", "'https://h.example.com'", "", Some("\"h.example.com:443\"")),
        ("'*.example.com:8443'", "'https://h.example.com'", "", Some("\"h.example.com:443\"")),
        ("'h.example.com'", "'https://other.example.com'", "", Some("\"other.example.com:443\"")),
        ("'h.example.com'", "['https://h.example.com', 'https://10.0.0.5']", "", Some("\"10.0.0.5:443\"")),
        ("'h.example.com'", "['https://10.0.0.4', 'https://10.0.0.5']", "tls.server_name = 'h.example.com'", None),
    ] {
        let head = format!("[registries.harbor]\nhosts = [{hosts}]\ncap = 9\nshare = 1\n{tls}\n");
        let text = format!(
            "{head}[registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = {upstream}\nrewrite = false\n"
        );
        let warnings = Config::parse(&text).unwrap().warnings;
        let reasons: Vec<_> = warnings.iter().map(|it| (it.key.as_str(), it.reason.as_str())).collect();
        match expected {
            None => assert_eq!(reasons, [], "{hosts} {upstream}"),
            Some(expected) => {
                assert!(
                    matches!(reasons[..], [("registries.harbor.mirror.upstream", reason)] if reason.contains(expected)),
                    "{reasons:?}"
                );
            }
        }
    }
}

#[test]
fn broken_lines_do_not_hide_other_problems() {
    let text = "\
drain_timeout = 30s
[listen]
proxy = '0.0.0.0:1'
allow_clients = [10.0.0.0/8]
[registries.harbor]
hosts = ['harbor']
cap =
share = 2
cap = 5
";
    let expected = [
        "1 drain_timeout: string values must be quoted",
        "4 listen.allow_clients: ",
        "7 registries.harbor.cap: ",
        "8 registries.harbor.share: a share is more than 0",
        "9 registries.harbor.cap: duplicate key",
    ];
    assert_problems(text, &expected);
    // A key that the broken line may contain is not reported as missing.
    let text = "[registries.harbor]\nhosts = ['harbor']\nshare = 1\ncap 200\n";
    assert_problems(text, &["4 registries.harbor.cap: key with no value"]);
    // The keys under the unclosed header are lost, so they are not reported as missing.
    assert_problems("[registries.harbor\ncap = 5\n", &["1 registries.harbor: unclosed table"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_cause() {
    let error = Config::load(Path::new("/nonexistent/sidecar.toml")).unwrap_err();
    let shown = error.to_string();
    assert!(shown.starts_with("cannot read /nonexistent/sidecar.toml: "), "{shown}");
}

#[test]
fn the_shipped_file_runs_as_it_is() {
    let config = Config::parse(SHIPPED).unwrap();
    assert_eq!(config.registries[0].slots, 10);
    assert_eq!(config.warnings, []);
    assert_eq!(config, Config::parse(LEAST).unwrap(), "what is not required is left at its default");
}

/// The settings that the shipped file has commented out, as line numbers counted from 0, with
/// whether the note calls the value an example.
fn commented_out() -> Vec<(usize, bool)> {
    let setting = |line: &str| {
        let line = line.strip_prefix("# ")?;
        if line.starts_with('[') {
            return Some(line.contains("# example:"));
        }
        let (key, rest) = line.split_once(" = ")?;
        let is_key = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        is_key.then(|| rest.contains("# example:"))
    };
    let lines = SHIPPED.lines().enumerate();
    lines.filter_map(|(number, line)| Some((number, setting(line)?))).collect()
}

/// The shipped file with some of its lines uncommented.
fn uncommented(numbers: &[usize]) -> String {
    let lines = SHIPPED.lines().enumerate().map(|(number, line)| {
        let line = if numbers.contains(&number) { &line[2..] } else { line };
        format!("{line}\n")
    });
    lines.collect()
}

#[test]
fn commented_settings_of_the_shipped_file_are_the_defaults() {
    let shipped = Config::parse(SHIPPED).unwrap();
    let (examples, defaults): (Vec<_>, Vec<_>) = commented_out().into_iter().partition(|(_, is_example)| *is_example);
    let numbers = |list: Vec<(usize, bool)>| list.into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    let (examples, defaults) = (numbers(examples), numbers(defaults));

    assert_eq!(defaults.len(), 26);
    for number in defaults {
        let text = uncommented(&[number]);
        assert_eq!(Config::parse(&text).as_ref(), Ok(&shipped), "line {}", number + 1);
    }
    assert_eq!(examples.len(), 39);
    let with_examples = Config::parse(&uncommented(&examples)).unwrap();
    assert!(with_examples.listen.metrics.is_some());
    assert!(!with_examples.listen.allow_clients.is_empty());
    assert_eq!(with_examples.registries[0].rate.unwrap().burst.get(), 100);
    assert!(with_examples.registries[0].mirror.as_ref().is_some_and(|mirror| mirror.rewrite));
}

/// The least file with leases, with these further lines of `[lease]` and of the registry.
fn leased(registry: &str, lease: &str) -> String {
    format!(
        "[registries.harbor]\nhosts = ['harbor.example.com']\ncap = 200\nshare = 'lease'\n{registry}\n[lease]\n\
         redis = 'redis://127.0.0.1:6379/0'\nnodes = 500\n{lease}"
    )
}

#[test]
fn a_leased_share_has_a_store_and_a_cap_that_holds_the_floors() {
    let config = Config::parse(&leased("rate_per_second = 2.5", "renew_every = '1s'\nadmit_for = '2s'")).unwrap();
    let (registry, lease) = (&config.registries[0], config.lease.as_ref().unwrap());
    assert_eq!((registry.share, lease.pool(registry.cap), config.warnings.as_slice()), (Share::LEASED, 200, &[][..]));
    let rate =
        "0 to 200 slots (cap 200 leased to 500 nodes; rate_per_second 5/2 x 500 nodes = 1250 new connections a second)";
    assert_eq!(crate::lease::checks::summary(&config, registry), rate);
    for (nodes, rate) in
        [("nodes = 500", "; rate_per_second 5/2 x 500 nodes = 1250 new connections a second"), ("", "")]
    {
        let fixed = leased("rate_per_second = 2.5", "").replace("'lease'", "'1/20'").replace("nodes = 500", nodes);
        let fixed = if nodes.is_empty() { fixed.split("[lease]").next().unwrap().to_owned() } else { fixed };
        let config = Config::parse(&fixed).unwrap();
        let said = crate::lease::checks::summary(&config, &config.registries[0]);
        assert_eq!(said, format!("10 slots (cap 200 x share 1/20{rate})"));
    }
    let mirror = "[registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = ['https://harbor.example.com', \
                  'https://b.example.com']\ncap_per_upstream = true";
    for (registry, lease, expected) in [
        ("", "floor = 1", "9 lease.floor: 500 nodes x floor 1 = 500, more than registries.harbor.cap = 200: lower"),
        (mirror, "", "8 registries.harbor.mirror.cap_per_upstream: one cap is leased to all nodes"),
        ("", "admit_for = '9s'", "9 lease.admit_for: 9s is less than twice renew_every (5s)"),
        ("", "renew_every = '200ms'\nadmit_for = '900ms'", "10 lease.admit_for: 900ms is less than a second"),
        (
            "linger = '9s'",
            "registry_gives_up = '8s'",
            "9 lease.registry_gives_up: 8s is less than registries.harbor.linger (9s)",
        ),
        ("", "ca_file = '/ca.pem'", "9 lease.ca_file: has no meaning without TLS"),
        ("", "node_id = 'a/b'", "9 lease.node_id: has 1 to 128 characters"),
        ("", "floors = 1", "9 lease.floors: unknown key, did you mean `floor`?"),
    ] {
        assert_problems(&leased(registry, lease), &[expected]);
    }
    assert_problems(&sized("10", "'lease'"), &["4 registries.harbor.share: \"lease\" needs a store that lends"]);
    let turns = leased("", "").replace("500", "4001");
    assert_problems(&turns, &["8 lease.nodes: 4001 nodes that take turns at 200 slots would have less than a second"]);
}

/// A URL with a password would be shown by `check --values`, and in the report for a bug.
#[test]
fn the_url_of_the_store_holds_no_secret() {
    for (url, expected) in [
        ("redis://:secret@127.0.0.1:6379/0", "7 lease.redis: holds a user or a password, which would be shown"),
        ("redis://u:secret@127.0.0.1:port/0", "7 lease.redis: cannot be read as a URL"),
        ("http://127.0.0.1", "7 lease.redis: is not the URL of a Redis server"),
        ("redis+sentinel://u:secret@h/m", "7 lease.redis: holds a user or a password, which would be shown"),
        ("redis+sentinel://h", "7 lease.redis: cannot be read as a URL"),
        ("redis+cluster://u:secret@h:6379", "7 lease.redis: holds a user or a password, which would be shown"),
        ("redis+cluster://h/1", "7 lease.redis: cannot be read as a URL"),
    ] {
        let found = problems(&leased("", "").replace("redis://127.0.0.1:6379/0", url));
        assert!(found.len() == 1 && found[0].starts_with(expected) && !found[0].contains("secret"), "{found:?}");
    }
}

#[test]
fn a_fixed_share_of_a_fleet_that_leases_is_warned_of_where_it_wastes() {
    let with_nodes = |nodes: u32| {
        let text = leased("", "").replace("500", &nodes.to_string()).replace("'lease'", "'1/20'");
        Config::parse(&text).unwrap().warnings
    };
    assert_eq!(with_nodes(50), []);
    assert!(with_nodes(51)[0].reason.starts_with("51 nodes have less than 4 of 200 slots each"));
}

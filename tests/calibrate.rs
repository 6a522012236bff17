//! `roadstead calibrate`: the cap that it recommends, and what the registry sees of it.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roadstead_test_support::{
    Illness, PASSWORD, Sidecar, StubHarbor, USER, Wire, config, eventually_is, on_terminal_that_answers,
};
use serde_json::Value;
use tokio::process::Command;

/// A sidecar in front of this Harbor, and the command beside it.
struct Stage {
    sidecar: Sidecar,
    password: tempfile::NamedTempFile,
}

impl Stage {
    async fn new(harbor: &StubHarbor) -> Stage {
        let registry = format!(
            "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = 4\nshare = 1\n\
             [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n",
            harbor.address()
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let password = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(password.path(), format!("{PASSWORD}\n")).unwrap();
        Stage { sidecar, password }
    }

    /// Exit status, standard output and standard error.
    async fn calibrate(&self, more: &[&str]) -> (Option<i32>, String, String) {
        self.calibrate_with(more, Stdio::null()).await
    }

    async fn calibrate_with(&self, more: &[&str], input: Stdio) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead"));
        command.arg("--config").arg(self.sidecar.config_path()).args(["calibrate", "harbor", "--step", "1"]);
        // The control socket of the sidecar lies there.
        command.env("RUNTIME_DIRECTORY", self.sidecar.config_path().parent().unwrap());
        let output = command.args(more).stdin(input).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(!text(&output.stdout).contains(PASSWORD) && !text(&output.stderr).contains(PASSWORD));
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    async fn found(&self, more: &[&str]) -> Value {
        let file = self.password.path().to_str().unwrap();
        let fixed = ["--repository", "team/app", "--user", USER, "--password-file", file, "--yes", "--json"];
        let (status, out, errors) = self.calibrate(&[&fixed, more].concat()).await;
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{out}");
        serde_json::from_str(&out).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_18_connections_is_found_out() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(30)).await;
    let stage = Stage::new(&harbor).await;
    let paused = || async { stage.sidecar.status().await["registries"]["harbor"]["paused"] == true };
    let (found, was_paused) = tokio::join!(stage.found(&[]), async {
        eventually_is("paused", Duration::from_secs(10), true, &paused).await;
        true
    });
    assert!((12..=18).contains(&found["recommended_cap"].as_u64().unwrap()), "{found}");
    assert!((15..=18).contains(&found["knee"].as_u64().unwrap()), "{found}");
    assert_eq!(found["limited_by"], "distress");
    assert!(was_paused && !paused().await, "the sidecar is resumed");
    let is_small = |asked: &String| asked.contains("/manifests/") || asked.contains("/service/token");
    assert!(harbor.requests().iter().all(is_small), "{:?}", harbor.requests());
    // It stops at the first sign: those under way are all that follows.
    let refused = harbor.struck().len();
    assert!(refused < 120, "{refused} refused");
}

/// With four connections, where the database has three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_at_the_first_sign_and_leaves_the_registry_alone_for_a_while() {
    let harbor = StubHarbor::limited(3, Duration::from_millis(30)).await;
    let stage = Stage::new(&harbor).await;
    let found = stage.found(&["--max", "4"]).await;
    let struck = harbor.first_struck().unwrap();
    let later: Vec<Duration> = harbor.asked().iter().filter_map(|(at, _)| at.checked_duration_since(struck)).collect();
    let soon = later.iter().filter(|after| **after < Duration::from_millis(1800)).count();
    // The sign takes 30 ms to come, and a pull that has its token goes on to its manifest.
    assert!(soon <= 12, "{later:?}");
    assert!(later.len() > soon + 20, "it goes on after that: {later:?}");
    assert_eq!((&found["knee"], &found["recommended_cap"]), (&3.into(), &2.into()), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_until_the_sidecar_has_no_request_under_way() {
    const BLOB: &str = "/v2/team/app/blobs/sha256:1";
    let harbor = StubHarbor::scripted(|head, _| head.target().contains("/blobs/").then_some(Illness::Silence)).await;
    let stage = Stage::new(&harbor).await;
    let (mirror, token) = (stage.sidecar.listener("mirror").unwrap(), harbor_token(&stage).await);
    let blob = tokio::spawn(async move { Wire::open(mirror).await.unwrap().get(BLOB, &[&token]).await.unwrap() });
    let last = || async { harbor.requests().last().cloned() };
    let blob_asked = Some(format!("GET {BLOB}"));
    eventually_is("a blob under way", Duration::from_secs(10), blob_asked.clone(), &last).await;
    let (found, before) = tokio::join!(stage.found(&["--max", "1"]), async {
        let paused = || async { stage.sidecar.status().await["registries"]["harbor"]["paused"] == true };
        eventually_is("paused", Duration::from_secs(10), true, &paused).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = last().await;
        harbor.speak();
        before
    });
    assert_eq!(before, blob_asked, "nothing is asked while the sidecar has a connection at work");
    assert_eq!((blob.await.unwrap().status(), &found["recommended_cap"]), (200, &1.into()), "{found}");
}

/// A token that the mirror brought, as a header.
async fn harbor_token(stage: &Stage) -> String {
    let mut wire = Wire::open(stage.sidecar.listener("mirror").unwrap()).await.unwrap();
    let basic = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let path = "/service/token?service=harbor-registry&scope=repository:team/app:pull";
    let answer = wire.get(path, &[&basic]).await.unwrap();
    format!("Authorization: Bearer {}", answer.json()["token"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_it_asks_before_it_starts() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(5)).await;
    let stage = Stage::new(&harbor).await;
    let file = stage.password.path().to_str().unwrap();
    for (answer, status, told) in [("n\n", 1, "not started"), ("\n", 1, "not started"), ("y\n", 0, "cap = 1 is safe")] {
        let asked = harbor.requests().len();
        let mut command = on_terminal_that_answers(("[y/N]", answer), env!("CARGO_BIN_EXE_roadstead"));
        command.arg("--config").arg(stage.sidecar.config_path());
        command.env("RUNTIME_DIRECTORY", stage.sidecar.config_path().parent().unwrap());
        let fixed = ["calibrate", "harbor", "--repository", "team/app", "--max", "1", "--step", "1"];
        let output = command.args(fixed).args(["--user", USER, "--password-file", file]).output().await.unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(status), "{out}");
        for part in ["team/app over up to 1 connections at once", "Pulls of others may fail", told] {
            assert!(out.contains(part), "{part}: {out}");
        }
        assert_eq!(harbor.requests().len() > asked, status == 0, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_never_opens_more_than_max_and_then_knows_no_limit() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(5)).await;
    let stage = Stage::new(&harbor).await;
    let found = stage.found(&["--max", "6"]).await;
    assert_eq!((&found["recommended_cap"], &found["limited_by"]), (&6.into(), &"max".into()), "{found}");
    assert!(harbor.stub().peak() <= 6, "{}", harbor.stub().peak());
    assert!(harbor.struck().is_empty());
}

/// The steps come while it runs, the table, the plot and the cap at the end. The password comes on standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_read_a_table_a_plot_and_the_cap() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(5)).await;
    let stage = Stage::new(&harbor).await;
    let password = Stdio::from(std::fs::File::open(stage.password.path()).unwrap());
    let arguments = ["--repository", "team/app", "--user", USER, "--password-file", "stdin", "--yes", "--max", "4"];
    let (status, out, errors) = stage.calibrate_with(&arguments, password).await;
    assert_eq!(status, Some(0), "{errors}");
    for part in ["connections  requests/s\n", "          4  #", "cap = 4 is safe"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(errors.contains("p95") && errors.lines().any(|line| line.trim_start().starts_with("4 ")), "{errors}");
}

#[tokio::test]
async fn it_does_not_start_unasked_or_where_the_registry_does_not_serve() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(1)).await;
    let stage = Stage::new(&harbor).await;
    let file = stage.password.path().to_str().unwrap();
    for (more, told) in [
        (vec!["--repository", "team/app"], "add --yes"),
        (vec!["--repository", "team/app", "--yes", "--user", USER], "--password-file"),
        (vec!["--repository", "team/app", "--yes"], "poisoned_token, with one connection already"),
        (vec!["--repository", "team/app", "--yes", "--max", "0"], "0 is not in"),
        (vec!["--repository", "team/app?x", "--yes"], "is no name"),
        (
            vec!["--repository", "nosuch/app", "--yes", "--user", USER, "--password-file", file],
            "nosuch/app/manifests/latest: refused, with one connection already",
        ),
    ] {
        let (status, out, errors) = stage.calibrate(&more).await;
        assert!(matches!(status, Some(1 | 2)) && out.is_empty() && errors.contains(told), "{more:?}: {errors}");
    }
    assert_eq!(stage.sidecar.status().await["registries"]["harbor"]["paused"], false);
}

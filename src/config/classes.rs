//! The tables `[classes.NAME]`.

use super::claims::{Claims, check_name};
use super::model::{ClassConfig, DEFAULT_CLASS};
use super::reader::{Read, Section};
use super::value::{duration, network, text, whole};

/// The classes, `default` first, whether the file names it or not.
pub(super) fn classes(section: &mut Section<'_>) -> Read<Vec<ClassConfig>> {
    let mut claims = Claims::default();
    let mut classes = section.each_table(|name, section| class(name, section, &mut claims))?;
    match classes.iter().position(|class| class.name == DEFAULT_CLASS) {
        Some(index) => classes[..=index].rotate_right(1),
        None => classes.insert(0, ClassConfig::default()),
    }
    Ok(classes)
}

fn class(name: &str, section: &mut Section<'_>, claims: &mut Claims<String>) -> Read<ClassConfig> {
    check_name(section, "class", name);
    let table = format!("classes.{name}");
    let users = section.list("users", "[\"kubelet\"]", |value| {
        let user = text(value)?.to_owned();
        claims.claim(&table, user.clone()).map(|()| user)
    });
    // Beside `users` they only bind the names, and several classes may list the same ones.
    let alone = matches!(users, Ok(None));
    let mut claim = |what: String| if alone { claims.claim(&table, what) } else { Ok(()) };
    let uids = section.list("uids", "[1000]", |value| {
        let uid = whole(0..=u32::MAX - 1)(value)?;
        claim(format!("uid {uid}")).map(|()| uid)
    });
    let addresses = section.list("addresses", "[\"10.0.0.0/8\"]", |value| {
        let range = network(value)?;
        claim(format!("address range {range}")).map(|()| range)
    });
    let weight = section.optional("weight", 1, whole(1..=1000));
    let tunnel_timeout = section.maybe("tunnel_timeout", duration);
    let request_timeout = section.maybe("request_timeout", duration);
    Ok(ClassConfig {
        name: name.to_owned(),
        users: users?.unwrap_or_default(),
        uids: uids?.unwrap_or_default(),
        addresses: addresses?.unwrap_or_default(),
        weight: weight?,
        tunnel_timeout: tunnel_timeout?,
        request_timeout: request_timeout?,
    })
}

//! `README.zh.md` has the structure of `README.md`: the same levels of headings, blocks of code, lists, and rows of tables.

use crate::page::Page;

/// The parts of a page, in their order.
fn structure(page: &str) -> Vec<String> {
    let page = Page::read(page);
    let (mut parts, mut code) = (Vec::new(), None::<String>);
    for line in page.text.lines() {
        match (&mut code, line.starts_with("```")) {
            (Some(block), true) => {
                parts.push(std::mem::take(block));
                code = None;
            }
            (Some(block), false) => block.extend([line, "\n"]),
            (None, true) => code = Some(format!("{line}\n")),
            (None, false) if line.starts_with('#') => {
                parts.push(format!("{} heading", line.split(' ').next().unwrap_or_default()));
            }
            (None, false) if line.starts_with('|') => {
                // A reason, an endpoint or a file in the first cell is the same in each language.
                let first = line.split('|').nth(1).unwrap_or_default();
                let is_code = first.trim().starts_with('`') && first.trim().ends_with('`') && first.is_ascii();
                let name = if is_code { first.trim() } else { "" };
                parts.push(format!("row of {} {name}", line.matches(" | ").count()));
            }
            (None, false) if line.starts_with("* ") || is_numbered(line) => {
                parts.push("item".to_owned());
            }
            (None, false) if line.starts_with("![") => {
                parts.push(line.split("](").nth(1).unwrap_or_default().to_owned());
            }
            (None, false) => {}
        }
    }
    assert!(code.is_none(), "a block without an end");
    parts
}

fn is_numbered(line: &str) -> bool {
    line.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok())
}

#[test]
fn the_chinese_page_keeps_step_with_the_english_one() {
    let (english, chinese) = (structure("README.md"), structure("README.zh.md"));
    assert!(english.len() > 100, "found only {} parts", english.len());
    for (at, (one, other)) in english.iter().zip(&chinese).enumerate() {
        assert_eq!(one, other, "part {at}, after {:?}", &english[at.saturating_sub(2)..at]);
    }
    assert_eq!(english.len(), chinese.len());
}

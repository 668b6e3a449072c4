//! Templates against Python's jinja2, and hostile ones.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Fixture {
    now: u64,
    bos_token: String,
    eos_token: String,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<(String, String)>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    /// None where the template raises an exception.
    expected: Option<String>,
}

fn render(source: &str) -> Result<String> {
    ChatTemplate::new(source)?.render(&[Message::new("user", "hi")], RenderOptions::default())
}

#[test]
fn templates_render_as_in_python() {
    let json = include_str!("../../../tests/fixtures/chat/templates.json");
    let fixture: Fixture = serde_json::from_str(json).unwrap();
    let mut wrong = Vec::new();
    for case in &fixture.cases {
        let now = fixture.now;
        let source = &fixture.templates[&case.template];
        let template = ChatTemplate::with_clock(source, move || now).unwrap();
        let messages: Vec<Message> = fixture.conversations[&case.conversation]
            .iter()
            .map(|(role, content)| Message::new(role, content))
            .collect();
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            bos_token: Some(&fixture.bos_token),
            eos_token: Some(&fixture.eos_token),
        };
        let rendered = template.render(&messages, options);
        let is_equal = match (&case.expected, &rendered) {
            (Some(expected), Ok(text)) => expected == text,
            (None, Err(Error::TemplateRender(_))) => true,
            _ => false,
        };
        if !is_equal {
            let (template, conversation) = (&case.template, &case.conversation);
            let expected = &case.expected;
            wrong.push(format!("{template}, {conversation}:\n{expected:?}\n{rendered:?}"));
        }
    }
    assert!(fixture.cases.len() > 100);
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_exception_keeps_its_message() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(error.to_string().contains("roles must alternate"), "{error}");
}

#[test]
fn syntax_errors_are_found_early() {
    for source in ["{% if %}", "{{ 'a }}", "{% for x in y %}", "{% nonsense %}"] {
        assert!(matches!(ChatTemplate::new(source), Err(Error::TemplateSyntax(_))), "{source}");
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(ChatTemplate::new(&deep), Err(Error::TemplateSyntax(_))));
}

#[test]
fn endless_templates_end() {
    let endless = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = 1 %}{% endfor %}{% endfor %}",
        "{% for a in range(99999999) %}x{% endfor %}",
        "{{ 'x' * 99999999999 }}",
        "{% set s = 'x' * 100000 %}{% for a in range(9999) %}{{ s }}{% endfor %}",
        "{% include 'chat' %}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
    ];
    for source in endless {
        let result = render(source);
        assert!(matches!(result, Err(Error::TemplateRender(_))), "{source}: {result:?}");
    }
}

#[test]
fn absent_tokens_are_undefined() {
    assert_eq!(render("{{ bos_token is defined }}|{{ bos_token }}").unwrap(), "False|");
    assert_eq!(render("{{ strftime_now('%Y') | int > 2024 }}").unwrap(), "True");
    let error = render("{{ strftime_now('%Q') }}").unwrap_err();
    assert!(error.to_string().contains("%Q"), "{error}");
}

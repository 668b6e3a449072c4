//! `plan`: the numbers, against ones worked out by hand.

use serde_json::Value;

use crate::fixture::{json_of, model, stdout_of};

const GIB: u64 = 1 << 30;

fn plan(args: &[&str]) -> Vec<Value> {
    json_of(&[&["plan", "--json", "--model"], args].concat())
}

fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("{field} in {object}"))
}

#[test]
fn four_million_tokens_of_llama_3_8b_on_80_gib() {
    let args = ["llama-3-8b", "--context", "4M", "--device-memory", "80GiB"];
    let planned = plan(&args);
    let [full, hca] = &planned[..] else { panic!("two caches by default") };
    assert_eq!([&full["cache"], &hca["cache"]], ["full", "hca:12.5%"]);
    // Keys and values, two bytes each, of 32 layers of 8 heads of 128.
    let kv_bytes = 2 * 2 * 32 * 8 * 128 * 4_000_000;
    assert_eq!(number(full, "full_bytes"), kv_bytes);
    assert_eq!(number(full, "device_total_bytes"), kv_bytes);
    assert_eq!(full["gpu"][0]["fit"]["fits"], false);

    let device = &hca["device"];
    let parts = ["resident", "window", "codes", "tables"].map(|part| number(device, part));
    assert_eq!(parts.iter().sum::<u64>(), number(hca, "device_total_bytes"));
    assert!(number(hca, "device_total_bytes") as f64 <= 0.125 * kv_bytes as f64);
    assert_eq!(number(&hca["weights"][0], "bytes"), 2 * 8_030_261_248);
    // On a GPU: as many weights, with zeros for biases and norms in f32, and the same codes and rows.
    let on_gpu =
        ["weights", "work", "cache", "cache_scratch"].map(|part| number(&hca["gpu"][0], part));
    let weights = number(&hca["weights"][0], "bytes");
    assert!((weights..weights + weights / 1000).contains(&on_gpu[0]));
    let cache = number(hca, "device_total_bytes");
    assert!((cache..cache + cache / 100).contains(&on_gpu[2]));
    let held = on_gpu.iter().sum::<u64>();
    let of_gpu = &hca["gpu"][0];
    let fit = &of_gpu["fit"];
    assert_eq!(of_gpu["form"], "f16");
    assert_eq!(number(of_gpu, "device_bytes"), held);
    assert_eq!(number(of_gpu, "peak_bytes"), held + number(&hca["gpu"][0], "prompt"));
    assert!(fit["fits"] == true && fit["peak_fits"] == false && held <= 80 * GIB);
    assert_eq!(number(&hca["prefill"], "keys_and_values"), 4_000_000 * 2 * 8 * 128 * 4);
    assert_eq!(number(&hca["prefill"], "hidden_states"), 4_000_000 * 4096 * 4);

    let largest = number(fit, "largest_context_tokens");
    assert!(largest > 4_000_000);
    let largest_prompt = number(fit, "largest_prompt_tokens");
    assert!((1_000_000..largest).contains(&largest_prompt));
    for (context, field, fits) in [
        (largest, "fits", true),
        (largest + 1, "fits", false),
        (largest_prompt, "peak_fits", true),
        (largest_prompt + 1, "peak_fits", false),
    ] {
        let context = context.to_string();
        let again = plan(&[&args[..1], &["--context", &context], &args[3..]].concat());
        assert_eq!(again[1]["gpu"][0]["fit"][field], fits, "{context} {field}");
    }
}

#[test]
fn the_table_says_what_fits() {
    let args = ["plan", "--model", "llama-3-8b", "--context", "4M", "--device-memory", "80GiB"];
    let table = stdout_of(&args);
    for part in [
        "llama-3-8b: 32 layers",
        "4,000,000 tokens (trained for 8,192)",
        "weights as f16",
        "15.0 GiB",
        "488.3 GiB",
        "61.0 GiB",
        "with --device gpu, weights as f16",
        "in 80.0 GiB, while generating",
        "does not fit",
        "   fits",
        "largest context while generating",
        "largest context read there",
    ] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
}

#[test]
fn a_folder_and_its_config_give_the_same() {
    let config = format!("{}/config.json", model());
    let (folder, file) = (plan(&[model()]), plan(&[&config]));
    assert_eq!(folder[1]["device"], file[1]["device"]);
    assert_eq!(number(&folder[1], "num_tokens"), 1024);
    assert_eq!(folder[0]["weights"].as_array().unwrap().len(), 2);
    assert_eq!(file[0]["weights"].as_array().unwrap().len(), 1);
}

#[test]
fn a_plan_is_what_a_run_allocates() {
    let book = crate::fixture::file("plan.txt", &crate::fixture::prose(700));
    for spec in ["full", "hca:25%", "hca-rescore:50%", "keys=int4-channel/64"] {
        let planned = plan(&[model(), "--context", "700", "--cache", spec]).remove(0);
        // One token is sampled and none of it cached.
        let args = ["generate", "--model", model(), "--file", &book, "--max-tokens", "1", "--json"];
        let run = json_of(&[&args[..], &["--cache", spec]].concat()).remove(0);
        assert_eq!(run["device"], planned["device"], "{spec}");
        assert_eq!(run["host_bytes"], planned["host_bytes"], "{spec}");
        assert_eq!(run["ratio"], planned["ratio"], "{spec}");
    }
}

#[test]
fn caches_that_no_gpu_takes_are_planned_for_too() {
    let book = crate::fixture::file("plan-forget.txt", &crate::fixture::prose(700));
    let specs = [
        ("full", true),
        ("snapkv:200", false),
        ("h2o:200,every=once", true),
        ("knorm:200,keys=int8-token,values=int8@host", false),
        ("streamingllm:200", false),
        ("dbudget", true),
        ("corm", false),
        ("snapkv:200,prefill=anchor:512", false),
    ];
    let caches = specs.iter().flat_map(|(spec, _)| ["--cache", spec]);
    let args: Vec<&str> = [model(), "--context", "700"].into_iter().chain(caches).collect();
    for (planned, (spec, is_on_gpu)) in plan(&args).iter().zip(specs) {
        assert_eq!(planned["cache"], spec);
        assert_eq!(planned["gpu"][0]["device_bytes"].is_u64(), is_on_gpu, "{spec}");
        let args = ["generate", "--model", model(), "--file", &book, "--max-tokens", "1", "--json"];
        let run = json_of(&[&args[..], &["--cache", spec]].concat()).remove(0);
        let parts = run["device"].as_object().unwrap().values();
        let taken: u64 = parts.map(|bytes| bytes.as_u64().unwrap()).sum();
        let planned = number(planned, "device_total_bytes");
        assert!(0 < taken && taken <= planned, "{spec}: {taken} of {planned}");
    }
}

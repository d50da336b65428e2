//! Plans as they are kept, and layers as the user writes them.

use nbdserve::ByteRange;
use nbdserve::plan::{self, LayerSpec, Plan};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, conformance};
use proptest::prelude::*;

use crate::made::{MIB, ROOTS, cx, disk, ext4, mount, resolve};

#[test]
fn a_plan_survives_its_record_and_is_reopened_without_probing() {
    let image = disk(ROOTS, &[(3, &ext4("root"))]);
    let found = resolve(&image, &mount()).unwrap();
    let json = serde_json::to_string(&found.plan).unwrap();
    assert!(json.contains("\"layers\":[\"partition:3\"]"), "{json}");
    let plan: Plan = serde_json::from_str(&json).unwrap();
    assert_eq!(plan, found.plan);

    let (source, counts) = Counting::volume(Memory::volume(image));
    let opened = plan::reopen(source, &plan, &cx()).unwrap();
    assert_eq!(opened.source_range, found.source_range);
    assert_eq!(opened.chain.len(), 2);
    // Table and backup, nothing of what is in the partitions.
    let inside = ByteRange::between(MIB as u64, 7 << 20);
    assert!(!counts.has_read(inside), "{:?}", counts.read_ranges());
    let bytes = conformance::read_all(&found.volume);
    assert!(conformance::read_all(&opened.volume) == bytes);
}

#[test]
fn a_plan_with_an_unknown_layer_is_refused() {
    let json = r#"{"source":"x","layers":["rot13"],"partition":null,"content":"bytes"}"#;
    let error = serde_json::from_str::<Plan>(json).unwrap_err();
    assert!(
        error.to_string().contains("there is no layer \"rot13\""),
        "{error}"
    );
}

#[test]
fn layers_are_read_and_written() {
    for (text, canonical) in [
        ("raw", "raw"),
        ("partition:2", "partition:2"),
        ("partition:number=2", "partition:2"),
        ("partition:2,sector=4096", "partition:2,sector=4096"),
        ("partition:sector=4096,number=2", "partition:2,sector=4096"),
        ("partition:sector=4096", "partition:sector=4096"),
        ("offset:1M,size=2M", "offset:1M,size=2M"),
        ("offset", "offset"),
        ("offset:a,,b", "offset:a,,b"),
    ] {
        let spec: LayerSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), canonical);
        assert_eq!(canonical.parse::<LayerSpec>().unwrap(), spec);
    }
    for (text, message) in [
        ("", "no layer \"\""),
        ("gzip9", "no layer \"gzip9\""),
        ("raw:1", "takes no parameters"),
        ("raw:a=1", "no parameter \"a\""),
        ("partition:", "not of the form key=value"),
        ("partition:2,3", "\"3\" is not of the form"),
        ("partition:2,", "\"\" is not of the form"),
        ("partition:2,number=3", "given twice"),
        ("partition:name=2", "no parameter \"name\""),
        ("offset:\u{1b}=1", "\\u{1b}"),
    ] {
        let error = text.parse::<LayerSpec>().unwrap_err();
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_of_a_parameter_survives_writing_and_reading(value in any::<String>()) {
        let spec = LayerSpec::with_value("partition", &value).unwrap();
        let again: LayerSpec = spec.to_string().parse().unwrap();
        prop_assert_eq!(again, spec);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), name in "offset|partition|raw") {
        let _ = text.parse::<LayerSpec>();
        let _ = format!("{name}:{text}").parse::<LayerSpec>();
        let _ = nbdserve::size::parse_size(&text);
    }
}

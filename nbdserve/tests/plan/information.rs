//! What is shown of an image.

use nbdserve::plan::{Info, Pick, Purpose};

use crate::made::{MIB, TWO, disk, ext4, mount, part, request, resolve, swap};

#[test]
fn information_is_aligned_text_and_json() {
    let script = "label: dos\nlabel-id: 0x1234abcd\n\
        1 : start=2048, size=2048, type=82\n2 : start=4096, size=2048, bootable\n";
    let mut image = disk(script, &[(1, &swap()), (2, &ext4("data"))]);
    // Not to depend on the moment: the UUIDs.
    image[MIB + 1036..][..16].fill(0x11);
    image[2 * MIB + 1024 + 104..][..16].fill(0x22);
    let found = resolve(&image, &part("2")).unwrap();
    let info = Info::new(&found);
    let expected = "\
disk.raw
  memory       8 MiB  random access
  partition:2  1 MiB  random access  MBR signature 55 aa at 510 and 2 entries that make sense
MBR, disk 1234abcd, sectors of 512 bytes
      start    size   type                  name  content      uuid
  1   1048576  1 MiB  Linux swap / Solaris                     1234abcd-01
  2*  2097152  1 MiB  Linux                       ext4 \"data\"  1234abcd-02
content: ext4 \"data\", UUID 22222222-2222-2222-2222-222222222222 (magic 53 ef at 1080)
";
    assert_eq!(info.to_string(), expected);

    let found = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    let info = Info::new(&found);
    let text = info.to_string();
    assert!(text.contains("swap \"swapped\"  1234abcd-01\n"), "{text}");
    assert!(text.ends_with("content: whole disk\n"), "{text}");
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["table"]["scheme"], "mbr");
    assert_eq!(json["layers"][0]["access"], "random");
    assert_eq!(json["partitions"][1]["number"], 2);
    assert_eq!(json["partitions"][1]["start"], 2 * MIB);
    assert_eq!(json["partitions"][1]["content"]["name"], "ext4");
    assert_eq!(json["partitions"][1]["attributes"], 1);
    assert_eq!(json["content"], "disk");
}

#[test]
fn labels_can_be_read_in_one_way_only() {
    // The name of a partition may be anything, that of an ext4 has 16 bytes.
    let script = "label: gpt\nstart=2048, size=2048, name=\"two  blanks\"\nstart=4096, size=2048\n";
    let mut fs = ext4("x");
    fs[1024 + 120..][..13].copy_from_slice(b"my \"label\"\\\nx");
    let image = disk(script, &[(1, &fs), (2, &fs)]);
    let found = resolve(&image, &part("1")).unwrap();
    let label = r#"ext4 "my \"label\"\\\nx""#;
    assert!(found.plan.to_string().ends_with(label), "{}", found.plan);
    let text = Info::new(&found).to_string();
    assert!(text.contains(&format!("  {label}  ")), "{text}");
    assert!(text.contains(r#"  "two  blanks"  "#), "{text}");
    assert!(text.contains(&format!("content: {label}, UUID")), "{text}");
    // And in the list of a message.
    let error = resolve(&image, &part("nothing \"such\"")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(r#""nothing \"such\"""#), "{text}");
    assert!(
        text.contains(&format!(r#""two  blanks", {label}"#)),
        "{text}"
    );
}

#[test]
fn names_from_the_image_cannot_paint_the_terminal() {
    let mut fs = ext4("x");
    fs[1024 + 120..][..8].copy_from_slice(b"\x1b[31mred");
    let image = disk(TWO, &[(1, &fs), (2, &fs)]);
    let found = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    let text = Info::new(&found).to_string();
    assert!(
        text.contains("\\u{1b}[31mred") && !text.contains('\u{1b}'),
        "{text}"
    );
    let error = resolve(&image, &mount()).unwrap_err().report().to_string();
    assert!(
        error.contains("\\u{1b}[31mred") && !error.contains('\u{1b}'),
        "{error}"
    );
    let found = resolve(&image, &part("1")).unwrap();
    assert!(!found.plan.to_string().contains('\u{1b}'));
}

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sendbird_bridge::fuzzing::row(data));

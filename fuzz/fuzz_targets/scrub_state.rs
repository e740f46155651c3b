#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::background::scrub::fuzz_scrub_state(data));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::store::upload::fuzz_upload(data));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::content_address::fuzz_content_address(data));

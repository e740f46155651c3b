#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::http::body::fuzz_body(data));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::http::route::fuzz_route(data));
